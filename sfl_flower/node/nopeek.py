"""NoPeek on a client that runs forwards alone: what it measures has one more term.

The term is α times the distance correlation of a mini-batch's inputs with its smashed data
(`sfl_flower.privacy.dependence`), in the units of a mean loss whatever the size of the mini-batch.
Probes find its derivative as they find the loss's: by forwards that run anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfl_flower.training.device import to_array
from sfl_flower.wire.probing import NO_DCOR

__all__ = ["Leak", "mean_dcor"]


class Leak:
    """The term of one mini-batch.

    Of a mini-batch in micro-batches the smashed data of all are held until the term is taken: a
    distance correlation is no sum over samples.

    Parameters
    ----------
    weight : float
        α; with 0 there is no term, and nothing is kept or computed.
    x : Tensor
        Inputs of the mini-batch, floating point, shape [n, ...].

    Attributes
    ----------
    found : Tensor or None
        The first distance correlation that was taken, that of the anchor; float64. None of so few
        samples that it says nothing.
    """

    def __init__(self, weight: float, x: Tensor) -> None:
        self._weight = weight
        self._met: list[Tensor] = []
        self.found: Tensor | None = None
        if weight:
            from sfl_flower.privacy.dependence import FEWEST, Dependence  # few runs need it

            self._dependence, self._tells = Dependence(x), len(x) >= FEWEST

    def meets(self, z: Tensor) -> Tensor:
        """Hold the smashed data of the next micro-batch for the term, and return them."""
        if self._weight:
            self._met.append(z)
        return z

    def through(self, head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return what holds smashed data for the term and runs a head on them."""
        return (lambda z: head(self.meets(z))) if self._weight else head

    def beside(self, value: Tensor) -> Tensor:
        """Return what was measured and the term of what was met since the last one, float64."""
        if not self._weight:
            return value
        met, self._met = self._met, []
        return value.double() + self.of(met[0] if len(met) == 1 else torch.cat(met))

    def of(self, z: Tensor) -> Tensor:
        """Return the term for smashed data of the whole mini-batch, float64, one element."""
        dcor = self._dependence.dcor(z)
        if self.found is None and self._tells:
            self.found = dcor.detach()
        return self._weight * dcor


def mean_dcor(weight: float, found: list[Tensor | None]) -> float | None:
    """Return what a client says of its mini-batches: their mean distance correlation.

    Parameters
    ----------
    weight : float
        α.
    found : list of Tensor or None
        `Leak.found` of each that counts.

    Returns
    -------
    float or None
        In [0, 1], over those that are finite; `NO_DCOR` where none is. None without a term.
    """
    if not weight:
        return None
    there = [dcor for dcor in found if dcor is not None]
    values = to_array(torch.stack(there)) if there else np.empty(0)
    values = values[np.isfinite(values)]
    return min(1.0, max(0.0, float(values.mean()))) if values.size else NO_DCOR
