"""What clients that only run forwards will learn: by cut and choice of trained parameters.

Backprop takes the gradient g of all weights of the client half.  Forwards estimate its projection
g_S on what is trained, of d dimensions, from n = P·K independent directions of signs and exact
derivatives along them: E‖ĝ‖² = ‖g_S‖² (1 + (d - 1) / n).  On a loss whose curvature is alike in all
directions the best step along an estimate lowers the loss in the mean by (gᵀE ĝ)² / E‖ĝ‖², up to a
constant, so it goes

    progress = share / (1 + (d - 1) / (P·K)),    share = ‖g_S‖² / ‖g‖²,

as far as a step of backprop on all weights of the half.  A probe is a forward besides the anchor's:
progress over 1 + P is largest at P = √((d - 1) / K).

What is left out: the noise of mini-batches, that gradients turn while a run goes on, that the rows
of A are scaled, and curvature that differs.  It ranks choices at the first weights, and forecasts
no accuracy: with time, choices of few directions are exhausted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.server.energy import energy, mean_gradient, sample_gradients
from sfl_flower.server.subspace import looked_at, public_gradients, trying
from sfl_flower.split import (
    Auto,
    GradientMoments,
    choose_subspace,
    held_energy,
    input_moments,
    read_subspace,
    restrict,
)
from sfl_flower.split.cutting import every_cut
from sfl_flower.split.parameters.subspace import BASIS, OUTPUTS, opened_layers
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import eval_mode

__all__ = ["CHOICES", "Learning", "LearningRow", "learning", "progress"]

CHOICES = (
    "all",
    "last:1",
    "norm",
    "subspace:1",
    "subspace:4",
    "subspace:auto:0.5",
    "subspace:auto",
)
BATCHES, BATCH = 8, 32
"""Test batches of the gradients, and samples of each."""
_BACKPROP = 3
"""What a forward and backward cost, in forwards."""


def progress(share: float, size: int, directions: float) -> float:
    """Return how far a forward-only step goes, of one of backprop; see the module.

    Parameters
    ----------
    share : float
        Share of the gradient's energy that is trained.
    size : int
        d, trained parameters.
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
    """

    at: str
    trained: str
    chosen: str
    size: int
    share: float
    weight: float
    probes: int
    sampled: int

    @property
    def ratio(self) -> float:
        """D / (P·K)."""
        return self.size / (self.probes * self.sampled)

    @property
    def progress(self) -> float:
        """Of a step of P probes on K clients, relative to backprop of the client half."""
        return progress(self.share, self.size, self.probes * self.sampled)

    @property
    def best_probes(self) -> int:
        """P at which a forward brings most."""
        return max(1, round(math.sqrt(max(0, self.size - 1) / self.sampled)))

    @property
    def per_forward(self) -> float:
        """Progress of a client forward at `best_probes`, relative to backprop's three forwards."""
        best = progress(self.share, self.size, self.best_probes * self.sampled)
        return best * _BACKPROP / (1 + self.best_probes)

    @property
    def whole(self) -> float:
        """Progress of the whole model, whose server half goes by backprop."""
        return 1 - self.weight + self.weight * self.progress


@dataclass(frozen=True)
class Learning:
    """What will learn.

    Attributes
    ----------
    rows : tuple of LearningRow
        By cut, then choice.
    notes : tuple of str
        Choices that are left out, and why.
    """

    rows: tuple[LearningRow, ...]
    notes: tuple[str, ...] = ()

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
        directions = row.best_probes * row.sampled
        said = (
            f"To learn by forwards: cut at '{row.at}' with task.trained={row.chosen} and P = "
            f"{row.best_probes}: {row.size:,} parameters hold {row.share:.2f} of the client half's "
            f"gradient, and a step of {row.sampled} clients goes "
            f"{progress(row.share, row.size, directions):.2g} as far as one of backprop there"
        )
        if last.at != row.at:
            directions = last.best_probes * last.sampled
            said += (
                f"; as late as '{last.at}', {last.trained} and P = {last.best_probes} go "
                f"{progress(last.share, last.size, directions):.2g}, and "
                f"{last.weight:.2f} of the whole gradient is the client's, not {row.weight:.2f}"
            )
        return (f"{said}.", *self.notes)


def learning(
    task: SplitTask,
    cuts: Sequence[str] | None = None,
    choices: Sequence[str] = CHOICES,
    probes: int = 8,
    sampled: int = 5,
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> Learning:
    """Say what will learn at each cut, for each choice of trained parameters.

    Gradients are those of the first test batches, at the first weights; directions are those a run
    would have, of the task's public samples or of noise.

    Parameters
    ----------
    task : SplitTask
        The learning problem; its own choice is left aside.
    cuts : sequence of str, optional
        The cuts; every legal one by default.
    choices : sequence of str
        What `SplitTask` takes as `trained`.
    probes, sampled : int
        P, and K, the clients of a round.
    seed : int
        The model's seed.
    watch : callable, optional
        Called with each cut's name.

    Raises
    ------
    CutError
        The model cannot be cut there.
    """
    halves = [
        (cuts[index] if cuts else found.at, found.client)
        for index, found in enumerate(every_cut(task.whole(seed), cuts=cuts, quiet=True))
    ]
    deepest = max(halves, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))[0]
    seen = _Seen(replace(task, cut=deepest, trained="all"), seed)
    rows: list[LearningRow] = []
    notes: dict[str, str] = {}
    for at, client in halves:
        if watch is not None:
            watch(at)
        names = {name for name, _ in client.named_parameters(remove_duplicate=False)}
        gradients = {name: g for name, g in seen.mean.items() if name in names}
        if not (own := energy(gradients)):
            continue  # nothing to train before this cut
        for trained in choices:
            try:
                chosen, half = seen.restricted(client, trained)
            except ConfigError as error:
                notes.setdefault(trained, f"{trained} is left out at '{at}': {error}")
                continue
            size = sum(p.numel() for p in half.parameters() if p.requires_grad)
            share = held_energy(half, gradients) / own
            weight = own / energy(seen.mean)
            rows.append(LearningRow(at, trained, chosen, size, share, weight, probes, sampled))
    return Learning(tuple(rows), tuple(notes.values()))


@dataclass
class _Seen:
    """What is looked at once, at the deepest cut: the halves of all others are within."""

    task: SplitTask
    seed: int

    @cached_property
    def mean(self) -> Mapping[str, Tensor]:
        """The mean gradient by each weight of the whole model."""
        return mean_gradient(sample_gradients(self.task, self.seed, BATCHES, BATCH, whole=True))

    @cached_property
    def gradients(self) -> GradientMoments:
        return public_gradients(self.task, self.seed)

    @cached_property
    def inputs(self) -> Mapping[str, Tensor]:
        client = self.task.with_trained("subspace:1").build(self.seed).client
        x, words = looked_at(self.task, self.seed)
        with trying(self.task, x, words), eval_mode(client):
            return input_moments(client, x)

    @cached_property
    def _vectors(self) -> dict[tuple[str, str], Tensor]:
        return {}

    def restricted(self, client: nn.Module, trained: str) -> tuple[str, nn.Module]:
        """Return what a choice names, and a client half that trains it, its directions set."""
        chosen, half = read_subspace(trained), copy.deepcopy(client)
        if isinstance(chosen, Auto):
            own = {name for name, _ in client.named_parameters(remove_duplicate=False)}
            trained = choose_subspace(half, self.gradients.of(own), chosen)
            chosen = read_subspace(trained)
        restrict(half, trained)
        for name, layer in opened_layers(half):
            assert chosen is not None and not isinstance(chosen, Auto)
            by_gradients = chosen.core or chosen.listed
            source = self.gradients.inputs if by_gradients else self.inputs
            basis = layer.get_buffer(BASIS)
            kind = "gradients" if by_gradients else "inputs"
            basis.copy_(self._leading(kind, name, source, len(basis)).t())
            if chosen.core:
                outputs = self._leading("outputs", name, self.gradients.outputs, len(basis))
                layer.get_buffer(OUTPUTS).copy_(outputs)
        return trained, half

    def _leading(self, kind: str, name: str, moments: Mapping[str, Tensor], rank: int) -> Tensor:
        if (kind, name) not in self._vectors:
            self._vectors[kind, name] = torch.linalg.eigh(moments[name])[1].flip(1).float()
        return self._vectors[kind, name][:, :rank]
