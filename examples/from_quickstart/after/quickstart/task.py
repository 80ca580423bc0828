"""The model, the data, and how one is trained and tested on the other."""

import torch
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from sfl_flower import Samples, SplitTask
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader


class Net(nn.Module):
    """A small convolutional net for images [N, 1, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = functional.relu(self.conv1(x))
        x = self.pool(functional.relu(self.conv2(x)))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def digits():
    """Return the images of handwritten digits, every fifth of them for the test."""
    found = load_digits()
    columns = {"image": found.images[:, None] / 16, "label": found.target}
    rows = Dataset.from_dict(columns).with_format("torch")
    numbers = range(len(rows))
    return rows.select([n for n in numbers if n % 5]), rows.select(numbers[::5])


def load_data(node_config, batch_size):
    """Return the images of one client."""
    partitioner = IidPartitioner(node_config["num-partitions"])
    partitioner.dataset = digits()[0]
    own = partitioner.load_partition(node_config["partition-id"])
    return DataLoader(own, batch_size, shuffle=True)


def load_test_data(batch_size):
    """Return the images that nobody trains on."""
    return DataLoader(digits()[1], batch_size)


def train(net, loader, epochs, lr):
    """Train a model, and return its mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    total = 0.0
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def test(net, loader):
    """Return the accuracy of a model."""
    net.eval()
    with torch.no_grad():
        right = sum((net(b["image"]).argmax(1) == b["label"]).sum().item() for b in loader)
    return right / len(loader.dataset)


task = SplitTask(
    "quickstart",
    Net,
    cut="pool",
    train=lambda context: Samples.of(load_data(context.node_config, 32)),
    test=lambda: Samples.of(load_test_data(32)),
    classes=10,
)
