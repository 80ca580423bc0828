"""How far a step of clients that only run forwards goes, and which setting goes farthest.

Backprop takes the gradient g of all weights of the client half.  Forwards estimate its projection
g_S on what is trained, of d dimensions, from n = P·K independent directions of signs and exact
derivatives along them: E‖ĝ‖² = ‖g_S‖² (1 + (d - 1) / n).  On a loss whose curvature is alike in all
directions the best step along an estimate lowers the loss in the mean by (gᵀE ĝ)² / E‖ĝ‖², up to a
constant, so it goes

    progress = share / (1 + (m - 1) / (P·K)),    share = ‖g_S‖² / ‖g‖²,    m = d,

as far as a step of backprop on all weights of the half.

With a scalar of each channel (`sfl_flower.zo.channels`) row c of the last layer, of δ numbers, has
an estimate of its own, E‖ĝ_c‖² = ‖g_c‖² (1 + (δ - 1) / n) + ‖h_c‖² δ / n: h_c is the gradient that
what is trained before the layer, of w numbers, has through channel c, and its probes tell in v_c
too.  That part itself goes by the scalar of the whole: (1 - 1 / n) ‖h‖² + ‖g_S‖² w / n, h = Σ h_c.
With Σ ‖h_c‖² = ‖h‖², as it is where the h_c are orthogonal, all of it is

    E‖ĝ‖² = ‖g_S‖² (1 + (w + δ - 1) / n),

the same formula with m = w + δ; with w = 0 it holds as it is, whatever the model.

A client pays A for the anchor and r for each probe.  Progress over A + r P is largest at
P = √(A (m - 1) / (r K)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sfl_flower.zo.probing import MOST_PROBES

__all__ = ["Learning", "LearningRow", "progress"]

_BACKPROP = 3
"""What a forward and backward cost, in forwards."""
_FEWER = 0.95
"""m over d above which scalars of channels are not worth their bytes."""
GUIDED = 1e-3
"""Progress of a forward below which a guide is named.

Every choice on MiniLM behind its last block, where a guide is what taught, is below; the choice
with scalars of channels that taught on EfficientNet-Lite0 has 70 times as much.
"""


def progress(share: float, size: int, directions: float) -> float:
    """Return how far a forward-only step goes, of one of backprop; see the module.

    Parameters
    ----------
    share : float
        Share of the gradient's energy that is trained.
    size : int
        m, the dimensions among which the noise arises: d, or fewer with scalars of channels.
    directions : float
        P·K, the directions that an update averages.
    """
    return share / (1 + max(0, size - 1) / directions)


@dataclass(frozen=True)
class LearningRow:
    """A cut and a choice of trained parameters.

    Attributes
    ----------
    at, trained, chosen : str
        The cut, the choice, and what it names where the server chooses.
    size : int
        d, trained parameters.
    share : float
        Of the energy of the mean gradient of the client half.
    weight : float
        Energy of the client half's gradient over that of the whole model's.
    probes, sampled : int
        P and K.
    apart : int
        m with ``scalars=channel``; 0 where no trained parameter has scalars of channels.
    anchor, probe : float
        A and r: operations of an update's anchor and of each probe, over those of a forward of the
        half as the model has it.
    last : bool
        Whether it is the last layer alone in a few directions, which has been measured to teach.
    """

    at: str
    trained: str
    chosen: str
    size: int
    share: float
    weight: float
    probes: int
    sampled: int
    apart: int = 0
    anchor: float = 1.0
    probe: float = 1.0
    last: bool = False

    @property
    def ratio(self) -> float:
        """D / (P·K)."""
        return self.size / (self.probes * self.sampled)

    @property
    def scalars(self) -> str:
        """The value of ``scalars`` to take: of channels where it is the better one by enough."""
        return "channel" if 0 < self.apart <= _FEWER * self.size else "batch"

    @property
    def noisy(self) -> int:
        """The m of these scalars."""
        return self.apart if self.scalars == "channel" else self.size

    @property
    def progress(self) -> float:
        """Of a step of P probes on K clients, relative to backprop of the client half."""
        return progress(self.share, self.size, self.probes * self.sampled)

    @property
    def by_channel(self) -> float | None:
        """The same with scalars of channels, None where there are none."""
        if not self.apart:
            return None
        return progress(self.share, self.apart, self.probes * self.sampled)

    def at_probes(self, probes: int) -> float:
        """Return the progress of a step of so many probes, with the scalars to take."""
        return progress(self.share, self.noisy, probes * self.sampled)

    def cost(self, probes: int) -> float:
        """Return what an update costs a client, in forwards of the half as the model has it."""
        return self.anchor + self.probe * probes

    @property
    def best_probes(self) -> int:
        """P at which a forward brings most; see the module."""
        noise = max(0, self.noisy - 1) / self.sampled
        best = round(math.sqrt(noise * self.anchor / self.probe))
        return min(max(1, best), MOST_PROBES)

    @property
    def per_forward(self) -> float:
        """Progress of a client forward at `best_probes`, relative to backprop's three forwards."""
        best = self.best_probes
        return self.at_probes(best) * _BACKPROP / self.cost(best)

    @property
    def whole(self) -> float:
        """Progress of the whole model, whose server half goes by backprop."""
        return 1 - self.weight + self.weight * self.at_probes(self.probes)

    @property
    def setting(self) -> str:
        """What to set, in words."""
        channel = ", scalars=channel" if self.scalars == "channel" else ""
        return f"task.trained={self.chosen}{channel} and P = {self.best_probes}"


@dataclass(frozen=True)
class Learning:
    """What will learn.

    Attributes
    ----------
    rows : tuple of LearningRow
        By cut, then choice.
    notes : tuple of str
        Choices that are left out, and why.
    public : bool
        Whether the task has public samples.
    samples : str
        How many samples the shares are of, and which: "64 public samples".
    """

    rows: tuple[LearningRow, ...]
    notes: tuple[str, ...] = ()
    public: bool = False
    samples: str = ""

    def best(self) -> dict[str, LearningRow]:
        """Return for each cut the choice that goes farthest a forward."""
        found: dict[str, LearningRow] = {}
        for row in self.rows:
            if row.at not in found or row.per_forward > found[row.at].per_forward:
                found[row.at] = row
        return found

    def advice(self) -> tuple[str, ...]:
        """Return in sentences what to take, and what is left out."""
        best = self.best()
        if not best:
            return self.notes
        row = max(best.values(), key=lambda row: row.whole)
        last = list(best.values())[-1]
        probes = row.best_probes
        said = (
            f"To learn by forwards: cut at '{row.at}' with {row.setting}: {row.size:,} parameters "
            f"hold {row.share:.2f} of the client half's gradient, and a step of {row.sampled} "
            f"clients goes {row.at_probes(probes):.2g} as far as one of backprop there, for "
            f"{row.cost(probes):.2g} forwards where that takes {_BACKPROP}"
        )
        if last.at != row.at:
            probes = last.best_probes
            said += (
                f"; as late as '{last.at}', {last.setting} go {last.at_probes(probes):.2g} for "
                f"{last.cost(probes):.2g}, and {last.weight:.2f} of the whole gradient is the "
                f"client's, not {row.weight:.2f}"
            )
        more = filter(None, (self._measured(last), self._guide(best)))
        return (f"{said}.", *more, *self.notes)

    def _measured(self, best: LearningRow) -> str:
        """Say what has been measured to teach where another choice goes farther, "" else."""
        rows = [row for row in self.rows if row.last and row.at == best.at]
        if best.last or not rows:
            return ""
        (row,) = rows
        probes = row.best_probes
        return (
            f"Measured to teach is the last layer alone in a few directions: behind '{row.at}' "
            f"{row.setting}, which go {row.at_probes(probes):.2g} for {row.cost(probes):.2g}."
        )

    def _guide(self, best: Mapping[str, LearningRow]) -> str:
        """Say so where a guide is what is left, "" where it is not."""
        if not self.public or any(
            row.per_forward > GUIDED or row.scalars == "channel" for row in best.values()
        ):
            return ""
        return (
            f"No choice has scalars of channels, and none brings {GUIDED:g} of backprop a forward: "
            "what is left are guides of the public samples (guide=public, guide_rest=0)."
        )
