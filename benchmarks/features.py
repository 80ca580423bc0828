"""A pre-trained test bed whose first layers stand: what these give is computed once and kept.

A run on it trains the layers behind those that stand, as it would with the whole model and the
others frozen, up to the rounding of other batches.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sfl_flower.data import Samples, seeded_construction
from sfl_flower.options import check_choice
from sfl_flower.split import cut
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["BEHIND", "TASK", "task_of"]

TASK = "efficientnet_cifar10 at 32"
"""The name of the task here, CIFAR-10 at its own resolution on EfficientNet-Lite0 cut behind its
last convolution. Its options are ``behind``, one of `BEHIND`, and ``trained``, as `SplitTask` takes
it."""
BEHIND = ("", "blocks.15")
"""The last layer that stands; none does where it is empty."""
_TOGETHER = 128
"""Samples of one forward through the layers that stand."""


@cache
def _whole() -> SplitTask:
    task = load_task("efficientnet_cifar10", resolution=32, cut="last.relu")
    # Depthwise convolutions of few positions run several times faster so.
    return replace(task, model=partial(_by_channels, task.model), token=f"{task.token}:channels")


def _by_channels(model: Callable[[], nn.Module]) -> nn.Module:
    return model().to(memory_format=torch.channels_last)


def task_of(behind: str = "", trained: str = "all") -> SplitTask:
    """Return `TASK`, beginning behind a layer that stands.

    Parameters
    ----------
    behind, trained : str
        See `TASK`.

    Raises
    ------
    ConfigError
        If `behind` is none of `BEHIND`.
    """
    check_choice("behind", behind, BEHIND)
    task = _whole()
    if not behind:
        return replace(task, trained=trained)
    load = partial(_samples, behind)
    return SplitTask(
        name=f"{TASK} behind {behind}",
        model=_rest,
        cut="middle",
        train=partial(load, "train"),
        test=partial(load, "test"),
        public=partial(load, "public"),
        classes=task.classes,
        trained=trained,
        token=f"features:{TASK}:{behind}",
    )


def _rest() -> nn.Module:
    """Build what is behind the last block of the whole model, the server half included."""
    task = _whole()
    model = task.model()
    halves = OrderedDict(middle=model.get_submodule("last"), head=cut(model, task.cut).server)
    return nn.Sequential(halves)


Split = Literal["train", "test", "public"]


def _samples(behind: str, split: Split) -> Samples:
    x, y = _arrays(behind, split)
    return Samples(torch.from_numpy(x), torch.from_numpy(y))


@cache
def _arrays(behind: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    folder = Path(tempfile.gettempdir()) / "sfl_flower-features"
    stem = sha256(f"{TASK} {behind} {torch.__version__}".encode())  # data and model are the task's
    files = [folder / f"{stem.hexdigest()[:16]}-{split}-{part}.npy" for part in ("x", "y")]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, _run(_whole(), behind, split), strict=True):
            aside = file.with_suffix(".part.npy")
            np.save(aside, array)
            aside.replace(file)
    x, y = (np.load(file, mmap_mode="c") for file in files)
    return x, y


def _run(task: SplitTask, behind: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    with seeded_construction(0):  # what stands is pre-trained: no seed decides it
        first = cut(task.model(), behind).client.eval()
    samples = task.samples(split)
    found: list[Any] = []
    with torch.no_grad():
        for start in range(0, len(samples), _TOGETHER):
            x, _ = task.batch(samples, slice(start, start + _TOGETHER))
            found.append(first(x).numpy())
    return np.concatenate(found), samples.y.numpy()
