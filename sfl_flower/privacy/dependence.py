"""How much of inputs is left in what is made of them: distance correlation over a mini-batch.

The distance correlation of Székely, Rizzo and Bakirov (2007) is 1 where z is x turned, moved and
scaled, and over all samples of a law 0 only where z tells nothing of x.  NoPeek (arXiv 2008.09161)
has it as a term of the loss, so that smashed data tell less of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FEWEST", "Dependence"]

FEWEST = 3
"""Samples below which the distance correlation is the same whatever they are."""
_NEAR = 1e-12
"""Squared distance over the squared norms below which it is the rounding of 0."""


class Dependence:
    """The inputs of a mini-batch, to be compared with what is made of them.

    With the distances ``a_ij = ‖x_i - x_j‖`` and ``A_ij = a_ij - a_i. - a_.j + a_..``, the same for
    z, ``dCov²(x, z) = 1/n² Σ_ij A_ij B_ij`` and
    ``dcor = √(dCov²(x, z) / √(dCov²(x, x) dCov²(z, z)))``.

    Parameters
    ----------
    x : Tensor
        Inputs, floating point, shape [n, ...]; each is taken as one vector.
    """

    def __init__(self, x: Tensor) -> None:
        self._centred = _centred(x)
        self._own = (self._centred**2).mean()

    def dcor(self, z: Tensor) -> Tensor:
        """Return the distance correlation with what is made of the inputs.

        Distances are from products of float64 numbers, and all sums are float64.  It may be
        differentiated, forward or back; identical samples and a z without any spread give 0 there.

        Parameters
        ----------
        z : Tensor
            Floating point, shape [n, ...].

        Returns
        -------
        Tensor
            float64, one element in [0, 1] but for rounding; 0 where inputs or z are all the same,
            NaN where one of their numbers is not finite.
        """
        other = _centred(z)
        both, own = (self._centred * other).mean(), self._own * (other**2).mean()
        # Where a square root has no derivative; chosen on the device, so that nothing waits for it.
        none = (own <= 0) | (both <= 0)  # false of NaN, which goes through
        squared = torch.where(none, 1.0, both) / torch.where(none, 1.0, own).sqrt()
        return torch.where(none, 0.0, squared.sqrt())


def _centred(values: Tensor) -> Tensor:
    """Return the distances between samples, less the means of rows and columns; float64, [n, n]."""
    flat = values.reshape(len(values), -1).to(torch.float64, copy=True)
    flat -= flat.mean(0, keepdim=True)  # in place: z is large
    products = flat @ flat.T
    norms = products.diagonal()
    reach = norms[:, None] + norms[None, :]
    squares = reach - 2.0 * products
    near = squares <= _NEAR * reach
    distances = torch.where(near, 0.0, torch.where(near, 1.0, squares).sqrt())
    rows = distances.mean(1, keepdim=True)
    return distances - rows - rows.T + rows.mean()
