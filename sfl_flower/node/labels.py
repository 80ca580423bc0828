"""Labels of a client as they may be told: the same in every message of a run."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.data import generator
from sfl_flower.node.store import NodeStore
from sfl_flower.privacy.responses import randomised
from sfl_flower.task import SplitTask

__all__ = ["told_labels"]

_SECRET = "label secret"


def told_labels(
    task: SplitTask, store: NodeStore, own: Tensor, epsilon: float
) -> NDArray[np.int64]:
    """Return what a client says its labels are.

    What is drawn follows from a secret of the node, which it makes at the first message of a run
    from its operating system and remembers.

    Parameters
    ----------
    task : SplitTask
        Says how many classes there are.
    store : NodeStore
        What the node remembers.
    own : Tensor
        All labels of the client, int64, shape [n, ...].
    epsilon : float
        ε of each.
    """
    secret = str(store.get_text(_SECRET).get("secret", ""))
    if not secret:
        secret = secrets.token_hex(16)
        store.put_text(_SECRET, {"secret": secret})
    y = own.to(torch.int64).numpy()
    return randomised(y, epsilon, task.classes, generator("labels", secret), task.ignore_label)
