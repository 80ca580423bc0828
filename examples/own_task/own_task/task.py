"""The learning problem: model, cut, loss and data. The rest of the app is the same for any task."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sfl_flower import Samples, SplitTask


def model():
    return nn.Sequential(nn.Linear(30, 2), nn.Tanh(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def table():
    # The file, and not `sklearn.datasets`: a client is a new process with every message of a
    # deployment, and importing scikit-learn there takes seconds each time.
    package = Path(find_spec("sklearn").origin).parent
    file = package / "datasets" / "data" / "breast_cancer.csv"
    numbers = torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1))
    return numbers[:, :-1].float(), numbers[:, -1].long()


def samples(test):
    x, y = table()
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    rows = torch.arange(len(y)) % 5 == 0
    return Samples(x[rows == test], y[rows == test])


task = SplitTask(
    name="breast_cancer",
    model=model,
    cut="1",  # the first tanh: its output crosses the network
    train=lambda: samples(False),
    test=lambda: samples(True),
    classes=2,
    loss=lambda output, y: functional.cross_entropy(output, y, label_smoothing=0.1),
)
