"""The directions in which layers of the client half may move, found on the server.

Clients get them with the first weights, for no two machines need compute them to the same bits.
"""

from __future__ import annotations

import copy
from logging import INFO, getLogger

import torch
from torch import Tensor

from sfl_flower.data import generator
from sfl_flower.errors import ConfigError
from sfl_flower.split import Halves, fit_subspace, read_subspace
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import eval_mode, torch_threads

__all__ = ["fitted"]

NOISE = 64
"""Inputs of noise that stand in for public samples."""

_log = getLogger("flwr")


def fitted(task: SplitTask, seed: int) -> Halves:
    """Return halves as `SplitTask.build` does, whose subspaces have their directions.

    Raises
    ------
    ConfigError
        The samples cannot be used; see `fit_subspace`.
    """
    if read_subspace(task.trained) is None:
        return task.build(seed)

    def fit() -> Halves:
        halves = task.build(seed)
        x, words = _looked_at(task, seed)
        _log.log(INFO, "\t├──> Directions of %s: those of %d %s", task.trained, len(x), words)
        try:
            with torch_threads(1), eval_mode(halves.client):  # a sum may depend on threads
                fit_subspace(halves.client, x)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ConfigError(
                f"The client half of task {task.name!r} cannot run {words} of shape "
                f"{list(x.shape[1:])}: {error}. public() must return samples like train()."
            ) from error
        return halves

    return copy.deepcopy(task.memo(("fitted", seed), fit))


def _looked_at(task: SplitTask, seed: int) -> tuple[Tensor, str]:
    """Return the inputs from which directions are taken, and what they are."""
    if task.public is not None:
        return task.batch(task.samples("public"), slice(None))[0], "public samples"
    x, _ = task.batch(task.samples("test"), slice(0, 2))
    if not x.is_floating_point():
        raise ConfigError(
            f"trained is '{task.trained}' and task {task.name!r} has no public samples, nor can "
            f"noise stand in for inputs of {x.dtype}; give it public=, a function that returns "
            "Samples which are nobody's secret."
        )
    drawn = generator("subspace noise", seed).standard_normal((NOISE, *x.shape[1:]))
    return torch.from_numpy(drawn).to(x.dtype), "inputs of noise, for there are no public samples"
