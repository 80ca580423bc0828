"""What clients that only run forwards will learn: by cut and choice of trained parameters.

`sfl_flower.profiling.progress` says how far a step goes; here is what that is made of: the share of
the gradient's energy that a choice holds, how many numbers it trains, which of them have scalars of
channels, and what an update costs.

What is left out: the noise of mini-batches, that gradients turn while a run goes on, that the rows
of A are scaled, and curvature that differs.  It ranks choices at the first weights, and forecasts
no accuracy: with time, choices of few directions are exhausted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.profiling.operations import operations
from sfl_flower.profiling.progress import Learning, LearningRow
from sfl_flower.server.channels import Apart, few_directions, told_apart
from sfl_flower.server.energy import energy, labelled, mean_gradient, sample_gradients
from sfl_flower.server.first_buffers import put_first_buffers
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
from sfl_flower.split.parameters.directions import NOTHING
from sfl_flower.split.parameters.layouts import in_groups
from sfl_flower.split.parameters.subspace import BASIS, OUTPUTS, opened_layers
from sfl_flower.task import Split, SplitTask
from sfl_flower.training.modes import eval_mode
from sfl_flower.zo import Probing, trained_names
from sfl_flower.zo.channels import Channels

__all__ = ["CHOICES", "learning"]

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
"""Batches of the gradients, as far as there are samples, and samples of each."""
_EXAMPLES = 2
"""Samples on which a run finds what is told apart by channel, and operations are counted."""


def learning(
    task: SplitTask,
    cuts: Sequence[str] | None = None,
    choices: Sequence[str] = (),
    probes: int = 8,
    sampled: int = 5,
    seed: int = 0,
    estimator: str = "forward",
    watch: Callable[[str], None] | None = None,
) -> Learning:
    """Say what will learn at each cut, for each choice of trained parameters.

    Gradients are those of a few batches at the first weights: of the public samples where the task
    has some with labels, else of the first test samples.  Directions are those a run would have, of
    the task's public samples or of noise.

    Parameters
    ----------
    task : SplitTask
        The learning problem; its own choice is left aside.
    cuts : sequence of str, optional
        The cuts; every legal one by default.
    choices : sequence of str
        What `SplitTask` takes as `trained`; by default `CHOICES`, and a few directions of the last
        layer before the cut where its rows have scalars of channels.
    probes, sampled : int
        P, and K, the clients of a round.
    seed : int
        The model's seed.
    estimator : str
        A name of `sfl_flower.zo.ESTIMATORS`, for what a probe costs.
    watch : callable, optional
        Called with each cut's name.

    Raises
    ------
    CutError
        The model cannot be cut there.
    """
    whole = task.whole(seed)
    put_first_buffers(task, whole)
    halves = [
        (cuts[index] if cuts else found.at, found.client)
        for index, found in enumerate(every_cut(whole, cuts=cuts, quiet=True))
    ]
    deepest = max(halves, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))[0]
    seen = _Seen(replace(task, cut=deepest, trained="all"), seed)
    x, _ = task.batch(task.samples("test"), slice(0, _EXAMPLES))
    probing = Probing(probes, estimator=estimator)
    rows: list[LearningRow] = []
    notes: dict[str, str] = {}
    for at, client in halves:
        if watch is not None:
            watch(at)
        names = {name for name, _ in client.named_parameters(remove_duplicate=False)}
        gradients = {name: g for name, g in seen.mean.items() if name in names}
        if not (own := energy(gradients)):
            continue  # nothing to train before this cut
        plain = operations(copy.deepcopy(client), x, probing).anchor
        last = few_directions(client, _apart(client, x, seed).tensors)
        for trained in choices or filter(None, (*CHOICES, last)):
            try:
                chosen, half = seen.restricted(client, trained)
            except ConfigError as error:
                notes.setdefault(trained, f"{trained} is left out at '{at}': {error}")
                continue
            apart = _noisy(half, x, seed)
            cost = operations(half, x, probing)
            rows.append(
                LearningRow(
                    at,
                    trained,
                    chosen,
                    size=sum(p.numel() for p in half.parameters() if p.requires_grad),
                    share=held_energy(half, gradients) / own,
                    weight=own / energy(seen.mean),
                    probes=probes,
                    sampled=sampled,
                    apart=apart,
                    anchor=cost.anchor / plain,
                    probe=cost.probe / plain,
                    last=trained == last,
                )
            )
    return Learning(tuple(rows), tuple(notes.values()), task.public is not None, seen.samples)


def _apart(half: nn.Module, x: Tensor, seed: int) -> Apart:
    """Return what a run with scalars of channels tells apart."""
    try:
        return told_apart("channel", half, x, seed)
    except ConfigError:  # nothing
        return Apart()


def _noisy(half: nn.Module, x: Tensor, seed: int) -> int:
    """Return m with scalars of channels, 0 where there are none."""
    tensors = _apart(half, x, seed).tensors
    named = dict(half.named_parameters())
    shapes = tuple(tuple(named[name].shape) for name in sorted(trained_names(half)))
    return Channels(shapes, tensors).noise_size if tensors else 0


@dataclass
class _Seen:
    """What is looked at once, at the deepest cut: the halves of all others are within."""

    task: SplitTask
    seed: int
    _gradients: GradientMoments | None = field(default=None, init=False, repr=False)

    @cached_property
    def split(self) -> Split:
        """The samples of the mean gradient."""
        return labelled(self.task)

    @property
    def samples(self) -> str:
        """The same in words, with their number."""
        return f"{min(len(self.task.samples(self.split)), BATCHES * BATCH)} {self.split} samples"

    @cached_property
    def mean(self) -> Mapping[str, Tensor]:
        """The mean gradient by each weight of the whole model."""
        return mean_gradient(
            sample_gradients(self.task, self.seed, BATCHES, BATCH, whole=True, split=self.split)
        )

    def gradients(self, trained: str) -> GradientMoments:
        """Return the moments of the public gradients; `trained` asks for them, for the error."""
        if self._gradients is None:
            self._gradients = public_gradients(self.task.with_trained(trained), self.seed)
        return self._gradients

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
            trained = choose_subspace(half, self.gradients(trained).of(own), chosen)
            chosen = read_subspace(trained)
        restrict(half, trained)
        for name, layer in opened_layers(half):
            assert chosen is not None and not isinstance(chosen, Auto)
            by_gradients = chosen.core or chosen.listed
            source = self.gradients(trained).inputs if by_gradients else self.inputs
            basis = layer.get_buffer(BASIS)
            kind = "gradients" if by_gradients else "inputs"
            rank = basis.shape[-2]
            basis.copy_(self._leading(kind, name, source, rank).mT)
            if chosen.core:
                moments = self.gradients(trained).outputs
                outputs = self._leading("outputs", name, moments, rank)
                in_groups(layer.get_buffer(OUTPUTS), basis).copy_(outputs)
        return trained, half

    def _leading(self, kind: str, name: str, moments: Mapping[str, Tensor], rank: int) -> Tensor:
        if (kind, name) not in self._vectors:
            values, vectors = torch.linalg.eigh(moments[name])
            if values.dim() > 1:  # of groups some have no inputs at all, and move nothing
                vectors = vectors * (values > NOTHING * values.max()).unsqueeze(-2)
            self._vectors[kind, name] = vectors.flip(-1).float()
        return self._vectors[kind, name][..., :rank]
