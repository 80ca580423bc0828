"""Pre-trained test beds whose first layers stand: what these give is computed once and kept.

A run on a bed trains the layers behind those that stand, as it would with the whole model and the
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
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.data import Samples, seeded_construction
from sfl_flower.split import cut
from sfl_flower.split.transformers.block_halves import ServerBlocks, longest
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["TASKS", "task_of", "whole"]

TASKS = ("efficientnet_cifar10 at 32", "sst2 behind all blocks")
"""Names of tasks here. Their options are ``behind``, the last layer or block that stands, none of
them where it is empty, and ``trained``, as `SplitTask` takes it."""
_TOGETHER = 128
"""Samples of one forward through the layers that stand."""


class Middle(nn.Module):
    """Blocks of an encoder between two cuts: from z of the first to z of the second.

    Parameters
    ----------
    half : ServerBlocks
        The server half of the first cut, whose head is left out.
    """

    def __init__(self, half: ServerBlocks) -> None:
        super().__init__()
        self.backbone = half._sfl_model[0].get_submodule(half._sfl_backbone)

    def forward(self, z: Tensor) -> Tensor:
        """Return hidden states [N, T, H], zero at padding, as a client half gives them."""
        mask = (z.detach() != 0).any(dim=-1)
        length = longest(mask)
        mask = mask[:, :length]
        hidden = self.backbone(
            inputs_embeds=z[:, :length],
            attention_mask=mask.long(),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state.masked_fill(~mask.unsqueeze(-1), 0.0)
        return functional.pad(hidden, (0, 0, 0, z.shape[1] - length))


@cache
def whole(name: str) -> SplitTask:
    """Return a task of `TASKS` with nothing that stands."""
    if name == TASKS[1]:
        return load_task(
            "sst2", train_size=8_534, cut="block:6", head="pooled", lora_rank=0, max_length=48
        )
    task = load_task("efficientnet_cifar10", resolution=32, cut="last.relu")
    # Depthwise convolutions of few positions run several times faster so.
    return replace(task, model=partial(_by_channels, task.model), token=f"{task.token}:channels")


def _by_channels(model: Callable[[], nn.Module]) -> nn.Module:
    return model().to(memory_format=torch.channels_last)


def task_of(name: str, behind: str = "", trained: str = "all") -> SplitTask:
    """Return a task of `TASKS` that begins behind a layer that stands.

    Parameters
    ----------
    name, behind, trained : str
        See `TASKS`.
    """
    task = whole(name)
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
        trained=trained,
        token=f"features:{name}:{behind}",
    )


def _rest(name: str, behind: str) -> nn.Module:
    """Build what is behind a layer of the whole model, the server half included."""
    task = whole(name)
    model = task.model()
    middle: nn.Module
    if name == TASKS[1]:
        half = cut(model, behind).server
        assert isinstance(half, ServerBlocks)
        middle = Middle(half)
    else:
        middle = model.get_submodule("last")
    return nn.Sequential(OrderedDict(middle=middle, head=cut(model, task.cut).server))


Split = Literal["train", "test", "public"]


def _samples(name: str, behind: str, split: Split) -> Samples:
    x, y = _arrays(name, behind, split)
    return Samples(torch.from_numpy(x), torch.from_numpy(y))


@cache
def _arrays(name: str, behind: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    folder = Path(tempfile.gettempdir()) / "sfl_flower-features"
    stem = sha256(f"{name} {behind} {torch.__version__}".encode())  # data and model are the name's
    files = [folder / f"{stem.hexdigest()[:16]}-{split}-{part}.npy" for part in ("x", "y")]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, _run(whole(name), behind, split), strict=True):
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
