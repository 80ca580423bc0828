"""A problem of a few hundred numbers, and settings under which every method learns it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from sfl_flower.data import Samples, generator
from sfl_flower.task import SplitTask

__all__ = ["METHOD_SETTINGS", "small_task"]

FEATURES, CLASSES = 12, 3
METHOD_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ho_sfl": {"minibatches": 2, "client_optimizer": "adam", "client_lr": 0.01},
    "heron": {"local_steps": 2, "probes": 2, "client_optimizer": "adam", "client_lr": 0.01},
    "splitfed_v1": {"local_steps": 2},
    "splitfed_v2": {"client_optimizer": "adam", "server_optimizer": "adamw"},
    "cse_fsl": {"local_steps": 2, "client_optimizer": "adam"},
    "fsl_sage": {"local_steps": 2, "align_every": 2},
    "fedavg": {"local_steps": 2, "client_optimizer": "adam"},
    "zo_sfl": {"local_steps": 2, "probes": 2, "client_lr": 0.001},
    "decomfl": {"local_steps": 2, "probes": 2, "client_lr": 0.001},
    "frozen": {"server_steps": "batch", "server_passes": 2},
}
"""What methods train with here where it is not their defaults: as much state as they can have."""


def small_task(samples: int = 480, width: int = 8) -> SplitTask:
    """Return the task: the largest of three sums of inputs, by two hidden layers and a cut.

    Parameters
    ----------
    samples : int
        Training samples.
    width : int
        Units of a hidden layer.
    """
    return SplitTask(
        name="small",
        model=partial(_model, width),
        cut="act",
        train=partial(_samples, "train", samples),
        test=partial(_samples, "test", 60),
        classes=CLASSES,
        token=f"small:{samples}:{width}",
    )


def _model(width: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(FEATURES, width),
            act=nn.Tanh(),
            hidden=nn.Linear(width, width),
            act2=nn.Tanh(),
            out=nn.Linear(width, CLASSES),
        )
    )


def _samples(split: str, count: int) -> Samples:
    x = generator("small", split).standard_normal((count, FEATURES), dtype=np.float32)
    y = x.reshape(count, CLASSES, -1).sum(axis=2).argmax(axis=1)
    return Samples(torch.from_numpy(x), torch.from_numpy(y))
