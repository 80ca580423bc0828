"""Pre-trained test beds whose first layers stand: what these give is computed once and kept.

A run on one trains the layers behind those that stand, as it would with the whole model and the
others frozen, up to the rounding of other batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from benchmarks.decoder_blocks import DecoderBlocks
from benchmarks.encoder_blocks import EncoderBlocks
from sfl_flower.data import Samples, seeded_construction
from sfl_flower.node.directory import check_owner
from sfl_flower.options import check_choice
from sfl_flower.split import cut
from sfl_flower.split.transformers.block_halves import ServerBlocks
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["IMAGES", "PROMPTS", "SENTENCES", "TASKS", "Standing", "task_of"]

IMAGES, SENTENCES = "efficientnet_cifar10 at 32", "sst2 at block:6"
PROMPTS = "smollm2_sst2 at block:20"
"""Names of the tasks here: CIFAR-10 at its own resolution on EfficientNet-Lite0 cut behind its last
convolution, SST-2 on MiniLM cut behind its last block, with 4 096 public sentences, and on SmolLM2
cut behind two thirds of its blocks, with 1 024. Their options are ``behind``, the last layer that
stands, and ``trained``, as `SplitTask` takes it."""
_TOGETHER = 128
"""Samples of one forward through the layers that stand."""


@dataclass(frozen=True)
class Standing:
    """A task whose first layers may stand.

    Attributes
    ----------
    whole : callable
        Returns it with none that stands.
    behind : tuple of str
        The last layer that may stand.
    middle : callable
        From the whole model and the layer that stands to what is between that and the cut.
    """

    whole: Callable[[], SplitTask]
    behind: tuple[str, ...]
    middle: Callable[[nn.Module, str], nn.Module]


@cache
def _images() -> SplitTask:
    task = load_task("efficientnet_cifar10", resolution=32, cut="last.relu")
    # Depthwise convolutions of few positions run several times faster so.
    return replace(task, model=partial(_by_channels, task.model), token=f"{task.token}:channels")


def _by_channels(model: Callable[[], nn.Module]) -> nn.Module:
    return model().to(memory_format=torch.channels_last)


def _last(model: nn.Module, behind: str) -> nn.Module:
    return model.get_submodule("last")


@cache
def _sentences() -> SplitTask:
    return load_task(
        "sst2",
        train_size=8_534,
        public_size=4_096,
        cut="block:6",
        head="pooled",
        lora_rank=0,
        max_length=48,
    )


def _blocks(model: nn.Module, behind: str) -> nn.Module:
    half = cut(model, behind).server
    assert isinstance(half, ServerBlocks)
    return EncoderBlocks(half)


@cache
def _prompts() -> SplitTask:
    return load_task(
        "smollm2_sst2", train_size=4_000, public_size=1_024, lora_rank=0, max_length=48
    )


def _decoder_blocks(model: nn.Module, behind: str) -> nn.Module:
    half = cut(model, behind).server
    assert isinstance(half, ServerBlocks)
    return DecoderBlocks(half, 20 - int(behind.removeprefix("block:")))


TASKS: Mapping[str, Standing] = {
    IMAGES: Standing(_images, ("blocks.15",), _last),
    PROMPTS: Standing(_prompts, ("block:17",), _decoder_blocks),
    SENTENCES: Standing(_sentences, ("block:3",), _blocks),
}
"""By name."""


def task_of(name: str, behind: str = "", trained: str = "all") -> SplitTask:
    """Return a task that begins behind a layer that stands.

    Parameters
    ----------
    name : str
        One of `TASKS`.
    behind : str
        The last layer that stands; none does where it is empty.
    trained : str
        As `SplitTask` takes it.

    Raises
    ------
    ConfigError
        If no such layer may stand.
    """
    standing = TASKS[name]
    check_choice("behind", behind, ("", *standing.behind))
    task = standing.whole()
    if not behind:
        return replace(task, trained=trained)
    load = partial(_samples, name, behind)
    return SplitTask(
        name=f"{name} behind {behind}",
        model=partial(_rest, name, behind),
        cut="middle",
        train=partial(load, "train"),
        test=partial(load, "test"),
        public=partial(load, "public"),
        classes=task.classes,
        metrics=task.metrics,
        ignore_label=task.ignore_label,
        trained=trained,
        token=f"features:{name}:{behind}",
    )


def _rest(name: str, behind: str) -> nn.Module:
    """Build what is behind a layer of the whole model, the server half included."""
    task = TASKS[name].whole()
    model = task.model()
    middle = TASKS[name].middle(model, behind)
    return nn.Sequential(OrderedDict(middle=middle, head=cut(model, task.cut).server))


Split = Literal["train", "test", "public"]


def _samples(name: str, behind: str, split: Split) -> Samples:
    x, y = _arrays(name, behind, split)
    return Samples(torch.from_numpy(x), torch.from_numpy(y))


@cache
def _arrays(name: str, behind: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    folder = _folder()
    stem = sha256(f"{name} {behind} {torch.__version__}".encode())  # data and model are the name's
    files = [folder / f"{stem.hexdigest()[:16]}-{split}-{part}.npy" for part in ("x", "y")]
    with FileLock(folder / f"{stem.hexdigest()[:16]}-{split}.lock"):  # runs go side by side
        if not all(file.exists() for file in files):
            for file, array in zip(files, _run(TASKS[name].whole(), behind, split), strict=True):
                aside = file.with_suffix(".part.npy")
                np.save(aside, array)
                aside.replace(file)
    x, y = (np.load(file, mmap_mode="c") for file in files)
    return x, y


def _folder() -> Path:
    """Return where features are kept over runs; nobody else may write there, for they are read."""
    folder = Path("~/.cache/sfl_flower/features").expanduser()
    for each in (folder.parent, folder):  # who may write to the first can replace the second
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(each, "what benchmarks keep", "chmod 700 it if it is yours")
    return folder


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
