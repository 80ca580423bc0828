"""The learning problem: model, cut, loss and data."""

import os

from sfl_flower import SplitTask
from torch.nn import functional

from my_app.data import CLASSES, load
from my_app.model import Net


def own_rows(context):
    """Return the rows of this node: its own file's, or its share of the table that comes along."""
    rows = load("train")
    if os.environ.get("MY_APP_DATA"):
        return rows
    node = context.node_config  # what the SuperNode was started with
    return rows.take(slice(int(node["partition-id"]), None, int(node["num-partitions"])))


task = SplitTask(
    name="my_app",
    model=Net,
    # Clients hold the layers up to this one, and its output crosses the network. A name that is
    # none is answered with the legal ones; `sfl profile` says what each cut costs a client.
    cut="tanh1",
    # Every node has data of its own (partition=local in the options); the server has the test set.
    train=own_rows,
    test=lambda: load("test"),
    classes=len(CLASSES),
    loss=functional.cross_entropy,  # loss(output, y), the mean of the batch
)
