"""Data that are asked for twice must be the same twice.

Every process of a run calls a task's functions for itself, and a client meets a mini-batch again
with the next message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfl_flower.data.samples import Samples
from sfl_flower.data.seeding import global_states, seeded_draws
from sfl_flower.errors import DataError

__all__ = ["UNREPEATED", "check_augment", "check_same", "check_transform"]

UNREPEATED = (
    "Seed what it draws with a number (torch.Generator().manual_seed(0), "
    "numpy.random.default_rng(0), shuffle=False) and sort what it lists (sorted(folder.iterdir()))."
)
"""What to do about data that differ from one call to the next."""

_ROWS, _TIMES = 32, 4


def check_same(function: str, first: Samples, again: Samples) -> None:
    """Refuse a function that returned other samples the second time.

    Raises
    ------
    DataError
        Inputs or labels differ in a bit, a shape or a dtype.
    """
    for a, b in ((first.x, again.x), (first.y, again.y)):
        if a is b or (a.dtype == b.dtype and torch.equal(a, b)):
            continue
        raise DataError(
            f"{function} returns other data the second time; every process calls it and must get "
            f"the same. {UNREPEATED}"
        )


def check_transform(task: str, transform: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Refuse a transform that is random.

    Raises
    ------
    DataError
        It draws from torch's, Python's or numpy's global generator, or two calls differ.
    """
    x = x[:_ROWS]
    before = global_states()
    first = transform(x.clone())
    if before == global_states() and all(_same(transform(x.clone()), first) for _ in range(_TIMES)):
        return
    raise DataError(
        f"transform of task {task!r} is random, so test data would differ from one evaluation to "
        "the next; give what is random as `augment=`, which changes training batches only, and is "
        "seeded by the client's key, the round and the step."
    )


def check_augment(task: str, augment: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Refuse an augmentation that is not the same for equally seeded generators.

    Raises
    ------
    DataError
        It draws from a generator of its own, or returns another number of samples.
    """
    x = x[:_ROWS]

    def once() -> Any:
        with seeded_draws("augment", task):
            return augment(x.clone())

    first = once()
    if not isinstance(first, Tensor) or len(first) != len(x):
        what = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise DataError(
            f"augment of task {task!r} turns inputs of shape {list(x.shape)} into {what}; it must "
            "return a tensor of as many samples."
        )
    if not all(_same(once(), first) for _ in range(_TIMES)):
        raise DataError(
            f"augment of task {task!r} gives other results for equally seeded generators; draw "
            "from torch's, Python's or numpy's global generator (torch.randint(...) without a "
            "generator): they are seeded for each batch."
        )


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)  # what it returns is tried on the model
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
