"""The learning problem: model, cut, loss and data."""

import torch
from torch import nn

from sensors.data import CONDITIONS, machine
from sfl_flower import Samples, SplitTask


class Net(nn.Module):
    """Two convolutions along time, and a layer; windows [N, 1, LENGTH]."""

    def __init__(self):
        super().__init__()
        # On the machine: as much as a small board computes.
        self.conv1 = nn.Conv1d(1, 8, 9, stride=2, padding=4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv1d(8, 8, 9, stride=2, padding=4)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AdaptiveAvgPool1d(8)
        # On the server.
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(64, 32)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(32, len(CONDITIONS))

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(self.flatten(x))))


def own_windows(context):
    """Return what the sensor of this node has recorded; here it is made up from its number."""
    return machine(int(context.node_config["partition-id"]), windows=200)


def other_machines():
    """Return windows of machines that nobody trains on."""
    found = [machine(number, windows=60) for number in range(1000, 1006)]
    return Samples(torch.cat([one.x for one in found]), torch.cat([one.y for one in found]))


task = SplitTask(
    name="sensors",
    model=Net,
    cut="pool2",  # 64 numbers a window, of 128 readings
    train=own_windows,
    test=other_machines,
    classes=len(CONDITIONS),
)
