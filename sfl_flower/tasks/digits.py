"""The UCI hand-written digits: 1797 real images of 8x8 pixels that come with scikit-learn."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.task import Samples, SplitTask

__all__ = ["digits", "digits_model"]


def digits_model() -> nn.Module:
    """Return the model."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(64, 16),
            relu1=nn.ReLU(),
            fc2=nn.Linear(16, 32),
            relu2=nn.ReLU(),
            fc3=nn.Linear(32, 10),
        )
    )


@lru_cache(maxsize=1)
def _images() -> tuple[Tensor, Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.images.astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(data.target.astype(np.int64))
    return x, y, np.zeros(0)


def _scale(x: Tensor) -> Tensor:
    return x.float() / 16.0


def _train() -> Samples:
    x, y, _ = _images()
    return Samples(x[:1437], y[:1437])


def _test() -> Samples:
    x, y, _ = _images()
    return Samples(x[1437:], y[1437:])


def digits() -> SplitTask:
    """Return the digits task."""
    return SplitTask(
        name="digits",
        model=digits_model,
        cut="relu1",
        train=_train,
        test=_test,
        classes=10,
        transform=_scale,
        token="digits",
    )
