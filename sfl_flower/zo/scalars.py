"""Scalars of probes: what a zeroth-order client computes and sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sfl_flower.errors import TrainingError
from sfl_flower.zo.directions import Direction
from sfl_flower.zo.estimator import Scalars, Target, Together
from sfl_flower.zo.probing import Probing
from sfl_flower.zo.vector import ParameterVector

__all__ = ["Sweep", "loss_scalars", "surrogate_scalars", "totals"]


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


def sample_totals(products: Tensor, channel: int) -> Tensor:
    """Do what `totals` does for each sample: float64, [n], or [n (1 + C)], a sample's together."""
    if not channel:
        return products.reshape(len(products), -1).sum(1, dtype=torch.float64)
    others = [dim for dim in range(1, products.dim()) if dim != channel]
    found = products.sum(others, dtype=torch.float64) if others else products.double()
    return torch.cat([found.sum(1, keepdim=True), found], dim=1).reshape(-1)


def surrogate_scalars(
    forward: Callable[[], Tensor],
    vector: ParameterVector,
    directions: Sequence[Direction],
    probing: Probing,
    anchor_out: Tensor,
    lam: Tensor,
    together: Together | None = None,
    *,
    of_samples: bool = False,
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
    of_samples : bool
        Whether those of each sample are wanted, which are not summed.

    Returns
    -------
    Tensor
        ``[P]`` float32 on the CPU, or ``[P (1 + C)]`` where `Probing.channel` tells channels apart:
        of each probe that of the whole first. Of samples ``[P n]`` or ``[P n (1 + C)]``. Not
        checked for finiteness: the caller reports and skips.

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
    total = sample_totals if of_samples else totals

    def checked(given: Tensor) -> Tensor:
        out = given.float()
        if out.shape != anchor.shape:
            raise TrainingError(
                f"A probe gave shape {tuple(out.shape)}, the anchor {tuple(anchor.shape)}; "
                "both must see the same batch."
            )
        return out

    def project(high: Tensor, low: Tensor) -> Scalars:
        return total((high - low).mul_(weight), probing.channel)

    if together is not None:
        read = together.read
        together = replace(together, read=lambda part: checked(read(part)))
    parts = 1 + anchor.shape[probing.channel] if probing.channel else 1
    parts *= len(anchor) if of_samples else 1
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
    parts = 1 if anchor is None else anchor.numel()
    return _scalars(Target(loss, _change, anchor, together, parts), vector, directions, probing)


class Sweep:
    """Every probe of a micro-batch before the next micro-batch: sums of each probe side by side.

    What no probe moves need so be in memory of one micro-batch alone. The sums are those of one
    probe after another, to the bit.

    Parameters
    ----------
    vector : ParameterVector
    directions : sequence of Direction
    probing : Probing
        As in `surrogate_scalars`; of an estimator that compares outputs, each probe in a forward of
        its own (`fits`).
    start : Tensor
        What sums begin with, one element or several that are wanted apart.
    given : bool
        Whether the caller has the sum at the anchor.
    """

    def __init__(
        self,
        vector: ParameterVector,
        directions: Sequence[Direction],
        probing: Probing,
        start: Tensor,
        given: bool = False,
    ) -> None:
        rule = probing.rule
        self._vector, self._directions, self._probing = vector, directions, probing
        self._anchored = rule.anchored and not given
        self._points: list[tuple[Direction | None, float]] = []
        if self._anchored:
            self._points.append((None, 0.0))
        self._points += [(u, side * probing.mu) for u in directions for side in rule.sides]
        self.sums = [start] * len(self._points)
        """Of each forward, in the order in which a mini-batch without parts runs them."""

    @staticmethod
    def fits(probing: Probing) -> bool:
        """Tell whether the forwards of a mini-batch are known before they run."""
        return bool(probing.rule.sides) and probing.stack == 1

    def add(self, plus: Callable[[Tensor], Tensor]) -> None:
        """Run a micro-batch at the anchor, where it is needed, and at every probe.

        Parameters
        ----------
        plus : callable
            Returns a sum with what the micro-batch gives at the parameters of the moment.
        """
        with torch.no_grad(), self._vector.watched():
            for at, (direction, length) in enumerate(self._points):
                moved = (
                    nullcontext() if direction is None else self._vector.probe(direction, length)
                )
                with moved:
                    self.sums[at] = plus(self.sums[at])

    def scalars(self, anchor: Tensor | None = None) -> Tensor:
        """Return what `loss_scalars` does; `anchor` is the sum there where the caller has it."""
        given = self.sums[0] if self._anchored else anchor
        found = zip(self._points, self.sums, strict=True)
        table = {(id(u), length): value for (u, length), value in found}
        target = _Swept(_never, _change, given, swept=table)
        return _scalars(target, self._vector, self._directions, self._probing)


@dataclass(frozen=True)
class _Swept(Target):
    """Outputs that are there already."""

    swept: Mapping[tuple[int, float], Tensor] = field(default_factory=dict)

    def outputs(
        self, vector: ParameterVector, directions: Sequence[Direction], scale: float
    ) -> list[Tensor]:
        return [self.swept[id(direction), scale] for direction in directions]


def _never() -> Tensor:
    raise AssertionError("every forward has run")


def _change(high: Tensor, low: Tensor) -> Scalars:
    return (high.double() - low.double()).reshape(-1)


def _scalars(
    target: Target, vector: ParameterVector, directions: Sequence[Direction], probing: Probing
) -> Tensor:
    with torch.no_grad(), vector.watched():
        found = probing.rule.scalars(target, vector, directions, probing.mu)
        # The one place where the host waits for a device: until here it only hands work over.
        return torch.cat(found).cpu().to(torch.float32)
