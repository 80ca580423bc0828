"""Labels of a client as they may be told: the same in every message of a run."""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.data import generator
from sfl_flower.errors import ConfigError
from sfl_flower.node.store import NodeStore
from sfl_flower.privacy.responses import randomised
from sfl_flower.task import SplitTask

__all__ = ["told_labels"]

MOST = 1e3
"""The largest ε: no label of up to 1e6 classes is then ever replaced."""
_SECRET, _OPTION = "label secret", "label-epsilon"


def told_labels(
    task: SplitTask, context: Context, own: Tensor, epsilon: float
) -> NDArray[np.int64]:
    """Return what a client says its labels are.

    What is drawn follows from a secret of the node, which it makes at the first message of a run
    from its operating system and remembers.  A ``label-epsilon`` of its own node configuration
    holds whatever the server asks for: the smaller of the two counts.

    Parameters
    ----------
    task : SplitTask
        Says how many classes there are.
    context : Context
        What the node remembers, and its configuration.
    own : Tensor
        All labels of the client, int64, shape [n, ...].
    epsilon : float
        ε of each as the server asks for it, 0 for none.

    Raises
    ------
    ConfigError
        If the node's own ε is no number above 0.
    """
    store, limit = NodeStore(context), context.node_config.get(_OPTION)
    if limit is not None:
        epsilon = min(_number(limit), epsilon or math.inf)
    secret = str(store.get_text(_SECRET).get("secret", ""))
    if not secret:
        secret = secrets.token_hex(16)
        store.put_text(_SECRET, {"secret": secret})
    y = own.to(torch.int64).numpy()
    return randomised(y, epsilon, task.classes, generator("labels", secret), task.ignore_label)


def _number(value: object) -> float:
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not 0 < found <= MOST:
        raise ConfigError(
            f"This node has {_OPTION} {value!r} in its node configuration; it must be a number "
            f"above 0 and at most {MOST:g}."
        )
    return found
