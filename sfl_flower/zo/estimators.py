"""Scalars of probes: what a zeroth-order client computes and sends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.zo.directions import Direction
from sfl_flower.zo.vector import ParameterVector

__all__ = ["loss_scalars", "surrogate_scalars"]


def surrogate_scalars(
    forward: Callable[[], Tensor],
    vector: ParameterVector,
    directions: Sequence[Direction],
    mu: float,
    anchor_out: Tensor,
    lam: Tensor,
    central: bool = False,
) -> Tensor:
    """Project what each probe changes at the cut on the cut-layer gradient (HO-SFL).

    ``v_p = sum(λ * (z~_p - z))``; central: ``v_p = sum(λ * (z+_p - z-_p)) / 2``. Either way
    ``v_p / μ`` estimates the derivative of ``<λ, f_c>`` along ``u_p``.

    Parameters
    ----------
    forward
        Computes the smashed data on the batch of the anchor, in the anchor's mode.
    vector
        The client half's trainable parameters.
    directions
        ``P`` directions of the vector's size.
    mu
        Probe length multiplier, > 0.
    anchor_out
        ``z``, float32, any shape. Not the copy that was compressed for the wire.
    lam
        ``λ``, float32, shape of ``z``.
    central
        Two forwards per direction instead of one; the anchor's output is not used.

    Returns
    -------
    Tensor
        ``[P]`` float32 on the CPU. Not checked for finiteness: the caller reports and skips.

    Raises
    ------
    ConfigError
        If ``mu`` is not positive and finite.
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

    def output() -> Tensor:
        out = forward().float()
        if out.shape != anchor.shape:
            raise TrainingError(
                f"A probe gave shape {tuple(out.shape)}, the anchor {tuple(anchor.shape)}; "
                "both must see the same batch."
            )
        return out

    def project(high: Tensor, low: Tensor) -> float:
        return float(torch.sum((high - low).mul_(weight), dtype=torch.float64))

    return _scalars(output, vector, directions, mu, anchor, project, central)


def loss_scalars(
    loss: Callable[[], Tensor],
    vector: ParameterVector,
    directions: Sequence[Direction],
    mu: float,
    central: bool = False,
    anchor: Tensor | None = None,
) -> Tensor:
    """Difference of a local loss along each direction (HERON-SFL, MeZO).

    ``v_p = L(θ + μ u_p) - L(θ)``; central: half of ``L(θ + μ u_p) - L(θ - μ u_p)``.

    Parameters
    ----------
    loss
        Computes the loss of the batch, one element. Called ``P + 1`` times (central: ``2 P``).
    vector, directions, mu, central
        As in `surrogate_scalars`.
    anchor
        The loss at the anchor, where the caller has it already; one call of `loss` less.

    Returns
    -------
    Tensor
        ``[P]`` float32 on the CPU.
    """

    def difference(high: Tensor, low: Tensor) -> float:
        return float(high.double() - low.double())

    with torch.no_grad():
        if anchor is None:
            anchor = torch.zeros(()) if central else loss().detach().clone()
    return _scalars(loss, vector, directions, mu, anchor, difference, central)


def _scalars(
    evaluate: Callable[[], Tensor],
    vector: ParameterVector,
    directions: Sequence[Direction],
    mu: float,
    anchor: Tensor,
    difference: Callable[[Tensor, Tensor], float],
    central: bool,
) -> Tensor:
    if not (math.isfinite(mu) and mu > 0):
        raise ConfigError(f"mu is {mu!r}; it must be finite and above 0, 1e-3 is usual.")
    scalars = []
    with torch.no_grad():
        for direction in directions:
            with vector.probe(direction, mu):
                high = evaluate()
            if not central:
                scalars.append(difference(high, anchor))
                continue
            with vector.probe(direction, -mu):
                scalars.append(difference(high, evaluate()) / 2.0)
    return torch.tensor(scalars, dtype=torch.float64).to(torch.float32)
