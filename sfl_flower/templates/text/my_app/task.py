"""The learning problem: model, cut, loss and data."""

from sfl_flower import SplitTask
from torch.nn import functional

from my_app.data import CLASSES, load
from my_app.model import Net

task = SplitTask(
    name="my_app",
    model=Net,
    # Clients hold the layers up to this one, and its output crosses the network. A name that is
    # none is answered with the legal ones; `sfl profile` says what each cut costs a client.
    cut="tanh1",
    # The training set is divided among the clients. For data of each node's own let the function
    # take Flower's context, `def train(context): ...`, and add partition=local to the options.
    train=lambda: load("train"),
    test=lambda: load("test"),
    classes=len(CLASSES),
    loss=functional.cross_entropy,  # loss(output, y), the mean of the batch
)
