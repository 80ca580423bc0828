"""The learning problem: model, cut, loss and data. The rest of the app is the same for any task."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional

from sfl_flower import Samples, SplitTask


def model():
    return nn.Sequential(nn.Linear(30, 2), nn.Tanh(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def samples(test):
    x, y = (torch.from_numpy(array) for array in load_breast_cancer(return_X_y=True))
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
