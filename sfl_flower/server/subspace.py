"""The directions in which layers of the client half may move, found on the server.

Clients get them with the first weights, for no two machines need compute them to the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from logging import INFO, getLogger

import torch
from torch import Tensor

from sfl_flower.errors import ConfigError
from sfl_flower.server.first_buffers import put_first_buffers
from sfl_flower.server.public_inputs import noise_inputs, public_inputs
from sfl_flower.split import (
    Auto,
    GradientMoments,
    Halves,
    Subspace,
    choose_subspace,
    fit_subspace,
    gradient_moments,
    read_subspace,
    with_gradients,
)
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import eval_mode, torch_threads

__all__ = ["fitted", "looked_at", "public_gradients", "resolved", "smaller_choice", "trying"]

SMALLER = ("subspace:4", "subspace:1", "norm", "bias")
"""Choices of parameters that are named where too many are trained, the largest first."""

_log = getLogger("flwr")


def resolved(task: SplitTask, seed: int, gradients: GradientMoments | None = None) -> SplitTask:
    """Return a task whose choice of parameters names layers: ``subspace:auto`` is chosen here.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    seed : int
        The model's seed.
    gradients : GradientMoments, optional
        `public_gradients`, where they are at hand.

    Raises
    ------
    ConfigError
        The task has no public samples, or they cannot be used; see `choose_subspace`.
    """
    auto = read_subspace(task.trained)
    if not isinstance(auto, Auto):
        return task

    def choose() -> str:
        moments = gradients or public_gradients(task, seed)
        client = task.with_trained("all").build(seed).client
        named = task.with_trained(choose_subspace(client, moments, auto))
        named.memo(_kept(named, seed, "gradients"), lambda: _fit(named, seed, moments))
        return named.trained

    return task.with_trained(task.memo(("chosen", seed, task.trained), choose))


def fitted(
    task: SplitTask, seed: int, source: str = "auto", gradients: GradientMoments | None = None
) -> Halves:
    """Return halves as `SplitTask.build` does, whose subspaces have their directions.

    Buffers for which the task names first values have these.

    Parameters
    ----------
    task : SplitTask
        The learning problem, `resolved`.
    seed : int
        The model's seed.
    source : {"auto", "public", "gradients", "noise", "clients"}
        What directions are of: inputs of the public samples, or of noise, or gradients on the
        public samples; ``clients``: none yet, `Joining` sets them.  ``auto``: gradients for a
        core and what `resolved` chose; else public samples, or noise without any.
    gradients : GradientMoments, optional
        `public_gradients`, where they are at hand.

    Raises
    ------
    ConfigError
        The samples cannot be used, see `fit_subspace`, or the choice has no such directions.
    """
    halves = _fitted(task, seed, source, gradients)
    put_first_buffers(task, halves.client, halves.server)
    return halves


def _fitted(task: SplitTask, seed: int, source: str, gradients: GradientMoments | None) -> Halves:
    chosen = read_subspace(task.trained)
    if chosen is None and source != "auto":
        raise ConfigError(
            f"subspace_from is '{source}', but trained is '{task.trained}', which has no "
            "directions; leave it at auto, or train a subspace (task.trained=subspace:4)."
        )
    if chosen is None or source == "clients":
        _by_inputs(chosen, task, source)
        return task.build(seed)
    assert isinstance(chosen, Subspace)
    if source == "auto" and (chosen.core or chosen.listed):
        source = "gradients"
    elif source not in ("auto", "gradients"):
        _by_inputs(chosen, task, source)

    def fit() -> Halves:
        if source != "gradients":
            return _fit(task, seed, None, source)
        task.build(seed)  # before gradients take their time
        return _fit(task, seed, gradients or public_gradients(task, seed))

    return copy.deepcopy(task.memo(_kept(task, seed, source), fit))


def smaller_choice(task: SplitTask, seed: int, excess: float) -> str:
    """Return a choice that trains fewer client parameters by at least `excess`, empty for none."""
    halves = task.build(seed)
    trained = _trained(halves)
    for choice in SMALLER:
        try:
            if choice.startswith("subspace"):
                looked_at(task, seed)  # there must be something to take directions from
            size = _trained(task.with_trained(choice).build(seed))
        except ConfigError:
            continue
        if trained - size >= excess:
            return f"{choice} leaves {size} in the client half"
    return ""


def _trained(halves: Halves) -> int:
    return sum(p.numel() for p in halves.client.parameters() if p.requires_grad)


def _kept(task: SplitTask, seed: int, source: str) -> tuple[str, int, str, str]:
    return "fitted", seed, task.trained, source


def _by_inputs(chosen: Subspace | Auto | None, task: SplitTask, source: str) -> None:
    """Refuse directions of inputs where those of gradients are meant."""
    if isinstance(chosen, Subspace) and (chosen.core or chosen.listed):
        raise ConfigError(
            f"subspace_from is '{source}', but trained is '{task.trained}', whose directions are "
            "of gradients; it must be auto or gradients."
        )


def _fit(
    task: SplitTask, seed: int, gradients: GradientMoments | None, source: str = "public"
) -> Halves:
    halves = task.build(seed)
    x, words = looked_at(task, seed, source)
    what = "those of gradients on" if gradients else "those of"
    _log.log(INFO, "\t├──> Directions of %s: %s %d %s", task.trained, what, len(x), words)
    with trying(task, x, words), eval_mode(halves.client):
        fit_subspace(halves.client, x, gradients)
    return halves


def public_gradients(task: SplitTask, seed: int) -> GradientMoments:
    """Return what the client half's gradients on each of the public samples are made of.

    Raises
    ------
    ConfigError
        There are none, or they cannot be used.
    """
    if task.public is None:
        raise ConfigError(
            f"trained is '{task.trained}', for which the server needs public samples with labels, "
            f"and task {task.name!r} has none; give it public=, a function that returns Samples "
            "which are nobody's secret, or use subspace:R."
        )
    halves = task.with_trained("all").build(seed)
    client, server = with_gradients(halves.client), halves.server
    x, y = task.batch(task.samples("public"), slice(None))

    def losses() -> Iterator[Tensor]:
        for n in range(len(x)):
            yield task.loss(server(client(x[n : n + 1])), y[n : n + 1])

    with trying(task, x, "public samples"), eval_mode(client, server), torch.enable_grad():
        return gradient_moments(client, losses())


@contextmanager
def trying(task: SplitTask, x: Tensor, words: str) -> Iterator[None]:
    """Run a block on one thread in which a half runs samples; `words` say what they are.

    Raises
    ------
    ConfigError
        It cannot run them.
    """
    try:
        with torch_threads(1):  # a sum may depend on threads
            yield
    except (RuntimeError, TypeError, IndexError) as error:
        raise ConfigError(
            f"The client half of task {task.name!r} cannot run {words} of shape "
            f"{list(x.shape[1:])}: {error}. public() must return samples like train()."
        ) from error


def looked_at(task: SplitTask, seed: int, source: str = "auto") -> tuple[Tensor, str]:
    """Return the inputs from which directions are taken, and what they are.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    seed : int
        The model's seed.
    source : {"auto", "public", "noise"}
        Public samples, noise, or the first that can be had.

    Raises
    ------
    ConfigError
        There are no public samples, and noise is no input of the model.
    """
    if task.public is not None and source != "noise":
        return public_inputs(task), "public samples"
    none = f"task {task.name!r} has no public samples"
    if source == "public":
        raise ConfigError(
            f"subspace_from is 'public', but {none}; give it public=, a function that returns "
            "Samples which are nobody's secret, or set subspace_from=noise or clients."
        )
    none = "public samples are left aside" if source == "noise" else none
    because = f"trained is '{task.trained}' and {none}"
    instead = "use subspace_from=public, for the task has public samples"
    return noise_inputs(task, "subspace noise", seed, because, instead), "inputs of noise"
