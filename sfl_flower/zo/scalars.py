"""Scalars of probes: what a zeroth-order client computes and sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import TrainingError
from sfl_flower.zo.directions import Direction
from sfl_flower.zo.estimator import Scalars, Target, Together
from sfl_flower.zo.probing import Probing
from sfl_flower.zo.vector import ParameterVector

__all__ = ["loss_scalars", "surrogate_scalars", "totals"]


def totals(products: Tensor, channel: int) -> Tensor:
    """Sum products with λ over a mini-batch, and where asked over each channel of it.

    Parameters
    ----------
    products : Tensor
        Of the shape of the smashed data.
    channel : int
        The dimension of the channels; 0 where they are not told apart.

    Returns
    -------
    Tensor
        float64, the sum [1], or the sum and then that of each channel [1 + C].
    """
    if not channel:
        return products.sum(dtype=torch.float64).reshape(1)
    others = [dim for dim in range(products.dim()) if dim != channel]
    found = products.sum(others, dtype=torch.float64)
    return torch.cat([found.sum().reshape(1), found])


def surrogate_scalars(
    forward: Callable[[], Tensor],
    vector: ParameterVector,
    directions: Sequence[Direction],
    probing: Probing,
    anchor_out: Tensor,
    lam: Tensor,
    together: Together | None = None,
) -> Tensor:
    """Project what each probe changes at the cut on the cut-layer gradient (HO-SFL).

    By forward differences ``v_p = sum(λ * (z~_p - z))``. Whatever the estimator,
    ``v_p / probing.unit`` estimates the derivative of ``<λ, f_c>`` along ``u_p``.

    Parameters
    ----------
    forward : callable
        Computes the smashed data on the batch of the anchor, in the anchor's mode.
    vector : ParameterVector
        The client half's trainable parameters.
    directions : sequence of Direction
        ``P`` directions of the vector's shapes.
    probing : Probing
        Estimator and probe length.
    anchor_out : Tensor
        ``z``, float32, any shape. Not the copy that was compressed for the wire.
    lam : Tensor
        ``λ``, float32, shape of ``z``.
    together : Together, optional
        How several probes run in one forward; of it `Together.read` gives the smashed data.

    Returns
    -------
    Tensor
        ``[P]`` float32 on the CPU, or ``[P (1 + C)]`` where `Probing.channel` tells channels apart:
        of each probe that of the whole first. Not checked for finiteness: the caller reports and
        skips.

    Raises
    ------
    TrainingError
        If a shape differs from the anchor's.

    Notes
    -----
    The difference is taken before the product, in float32, and the products are summed in
    float64, so that nothing small is lost in a large sum.
    """
    if lam.shape != anchor_out.shape:
        raise TrainingError(
            f"λ has shape {tuple(lam.shape)}, the smashed data {tuple(anchor_out.shape)}; "
            "they must be equal."
        )
    anchor, weight = anchor_out.detach().float(), lam.detach().float()

    def checked(given: Tensor) -> Tensor:
        out = given.float()
        if out.shape != anchor.shape:
            raise TrainingError(
                f"A probe gave shape {tuple(out.shape)}, the anchor {tuple(anchor.shape)}; "
                "both must see the same batch."
            )
        return out

    def project(high: Tensor, low: Tensor) -> Scalars:
        return _array(totals((high - low).mul_(weight), probing.channel))

    if together is not None:
        read = together.read
        together = replace(together, read=lambda part: checked(read(part)))
    parts = 1 + anchor.shape[probing.channel] if probing.channel else 1
    target = Target(lambda: checked(forward()), project, anchor, together, parts)
    return _scalars(target, vector, directions, probing)


def loss_scalars(
    loss: Callable[[], Tensor],
    vector: ParameterVector,
    directions: Sequence[Direction],
    probing: Probing,
    anchor: Tensor | None = None,
    together: Together | None = None,
) -> Tensor:
    """Difference of a local loss along each direction (HERON-SFL, DeComFL, MeZO).

    By forward differences ``v_p = L(θ + μ u_p) - L(θ)``.

    Parameters
    ----------
    loss : callable
        Computes the loss of the batch, one element; or several losses that are wanted apart.
        Called `Probing.forwards` times.
    vector : ParameterVector
    directions : sequence of Direction
    probing : Probing
        As in `surrogate_scalars`.
    anchor : Tensor, optional
        The loss at the anchor, where the caller has it already; one call of `loss` less.
    together : Together, optional
        How several probes run in one forward; of it `Together.read` gives the loss.

    Returns
    -------
    Tensor
        ``[P]`` float32 on the CPU, as many of each probe as there are losses.
    """

    def difference(high: Tensor, low: Tensor) -> Scalars:
        return _array((high.double() - low.double()).reshape(-1))

    parts = 1 if anchor is None else anchor.numel()
    return _scalars(Target(loss, difference, anchor, together, parts), vector, directions, probing)


def _scalars(
    target: Target, vector: ParameterVector, directions: Sequence[Direction], probing: Probing
) -> Tensor:
    with torch.no_grad():
        found = probing.rule.scalars(target, vector, directions, probing.mu)
    return torch.from_numpy(np.concatenate(found)).to(torch.float32)


def _array(values: Tensor) -> Scalars:
    found: Scalars = values.cpu().numpy()
    return found
