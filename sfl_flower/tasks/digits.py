"""The UCI hand-written digits: 1797 real images of 8x8 pixels that come with scikit-learn.

Either client half ends in a dense layer with eight outputs. A random layer that narrow loses what
tells the digits apart, so what the client half learns shows in the accuracy.  Under ``conv`` there
are two convolutions at full size before it, whose outputs a client that runs backprop has to keep.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfl_flower.data import Samples
from sfl_flower.options import check_choice
from sfl_flower.task import SplitTask

__all__ = ["MODELS", "digits", "digits_conv_model", "digits_model"]


def digits_model() -> nn.Sequential:
    """Return 64 -> 8 -> 64 -> 10 with a tanh after the first layer: 520 + 1226 parameters.

    Inputs [N, 1, 8, 8] in 0..1, outputs [N, 10].
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(64, 8),
            tanh1=nn.Tanh(),
            fc2=nn.Linear(8, 64),
            relu2=nn.ReLU(),
            fc3=nn.Linear(64, 10),
        )
    )


def digits_conv_model() -> nn.Sequential:
    """Return two 3x3 convolutions of 8 channels, then as `digits_model`: 1696 + 1226 parameters.

    Inputs [N, 1, 8, 8] in 0..1, outputs [N, 10].
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 8, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(128, 8),
            tanh1=nn.Tanh(),
            fc2=nn.Linear(8, 64),
            relu3=nn.ReLU(),
            fc3=nn.Linear(64, 10),
        )
    )


MODELS = {"dense": digits_model, "conv": digits_conv_model}
"""Models of the task by name."""


def digits(model: str = "dense", trained: str = "all") -> SplitTask:
    """Return the task: 1437 training and 360 test images, 10 classes, cut after ``tanh1``.

    Every fifth image in the order of the labels is a test image: no seed, and each class in
    proportion.

    Parameters
    ----------
    model : {"dense", "conv"}
        What is trained: `digits_model`, or `digits_conv_model`.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it.

    Raises
    ------
    ConfigError
        There is no such model, or `trained` is no choice of parameters.
    """
    check_choice("task.model", model, MODELS)
    return SplitTask(
        name="digits",
        model=MODELS[model],
        cut="tanh1",
        train=_train,
        test=_test,
        classes=10,
        transform=_scale,
        trained=trained,
        token=f"digits {model}",
    )


def _rows() -> npt.NDArray[np.float64]:
    """Return 64 pixels and the label of every image, shape [1797, 65]."""
    # Importing scikit-learn takes seconds, in every worker and for every message of a deployment;
    # the file it ships takes a tenth of one.
    found = find_spec("sklearn")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])


@cache
def _halves() -> dict[Literal["train", "test"], Samples]:
    rows = _rows()
    y = rows[:, -1].astype(np.int64)
    tested = np.zeros(len(y), dtype=bool)
    tested[np.argsort(y, kind="stable")[::5]] = True
    everything = Samples(
        torch.from_numpy(rows[:, :-1].astype(np.uint8)).reshape(-1, 1, 8, 8), torch.from_numpy(y)
    )
    return {
        "train": everything.take(np.flatnonzero(~tested)),
        "test": everything.take(np.flatnonzero(tested)),
    }


def _train() -> Samples:
    return _halves()["train"]


def _test() -> Samples:
    return _halves()["test"]


def _scale(x: Tensor) -> Tensor:
    return x.float() / 16.0
