"""Models of a task, built with the initial weights of a run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfl_flower.data import seeded_construction, seeded_torch
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.split import Halves, Tailed, cut, cut_tail, make_head, restrict, stay_frozen
from sfl_flower.training.fields import called

if TYPE_CHECKING:
    from sfl_flower.task.task import SplitTask

__all__ = [
    "TAIL",
    "construct",
    "construct_head",
    "construct_whole",
    "new_tail",
    "tailed",
    "unused_state",
]

TAIL = "tail:"
"""What the kind of a head begins with that is the model's own tail; the layer follows."""


def construct_whole(task: SplitTask, seed: int) -> nn.Module:
    """Return the whole model; see `SplitTask.whole`."""
    with seeded_construction(seed):
        model = called(task.model, f"The model function of task {task.name!r}", ConfigError)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"The model function of task {task.name!r} returned a {type(model).__name__}; it "
            "must return a torch.nn.Module."
        )
    return model


def construct(task: SplitTask, seed: int) -> Halves:
    """Return the halves; see `SplitTask.build`."""
    whole = _plain(construct_whole(task, seed))
    halves = cut(whole, task.cut)
    restrict(halves.client, task.trained)
    stay_frozen(halves.client, halves.server)
    used = {*halves.client.state_dict(), *halves.server.state_dict()}
    unused = {name: value for name, value in whole.state_dict().items() if name not in used}
    task.memo(("unused", seed), lambda: unused)
    return halves


def _plain(whole: nn.Module) -> nn.Module:
    """Let embeddings give the same gradient in the form that optimisers and clipping take."""
    for module in whole.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
    return whole


def tailed(task: SplitTask, seed: int, at: str = "") -> Tailed:
    """Return the server half of a run in two parts, of which clients hold the second.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    seed : int
        The model's seed; `RunConfig.model_seed` of a run.
    at : str
        The layer whose output the features are; see `cut_tail`.

    Raises
    ------
    CutError
        The server half cannot be cut there.
    """

    def make() -> Tailed:
        found = cut_tail(_plain(construct_whole(task, seed)), task.cut, at)
        stay_frozen(found.body, found.tail)
        return found

    return copy.deepcopy(task.memo(("tailed", seed, at), make))


def new_tail(task: SplitTask, seed: int, kind: str) -> nn.Module:
    """Return a new tail, the same bits in every process; `kind` is `TAIL` and its layer."""

    def make() -> nn.Module:
        return tailed(task, seed, kind.removeprefix(TAIL)).tail

    return copy.deepcopy(task.memo(("tail", seed, kind), make))


def unused_state(task: SplitTask, seed: int) -> dict[str, Tensor]:
    """Return parameters and buffers that no forward uses, as they were built.

    They are in neither half and never trained; a saved model has them, so that a strict load into
    the whole model works.
    """
    task.build(seed)
    return task.memo(("unused", seed), dict)


def construct_head(task: SplitTask, seed: int, kind: str, init: str) -> nn.Module:
    """Return an auxiliary head; see `SplitTask.build_head`."""
    halves = task.build(seed)
    with torch.no_grad():
        z = halves.client.eval()(task.batch(task.samples("test"), slice(0, 2))[0])
        output = copy.deepcopy(halves.server).eval()(z)
    shape = list(output.shape) if isinstance(output, Tensor) else None
    if shape is None or (len(shape) != 2 and not len(shape) == z.ndim == 3):
        given = f"an output of shape {shape}" if shape is not None else f"a {type(output).__name__}"
        raise CutError(
            f"The model of task {task.name!r} gives {given}; an auxiliary head needs one of shape "
            "[N, outputs], or [N, T, outputs] of texts."
        )
    with seeded_torch("head", seed), torch.device("cpu"):
        return make_head(
            kind, halves.server, tuple(z.shape[1:]), tuple(output.shape[1:]), init=init,
            custom=task.head,
        )  # fmt: skip
