"""Labels of a client as they may be told: the same in every message of a run."""

from __future__ import annotations

import math
import secrets
from hashlib import blake2b

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.data import generator
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.node.store import LABEL_SECRET, NodeStore
from sfl_flower.privacy.responses import randomised
from sfl_flower.task import SplitTask

__all__ = ["told_labels"]

MOST = 1e3
"""The largest ε: no label of up to 1e6 classes is then ever replaced."""
_OPTION = "label-epsilon"
"""The node's own option."""


def told_labels(
    task: SplitTask, context: Context, own: Tensor, epsilon: float
) -> NDArray[np.int64]:
    """Return what a client says its labels are.

    What is drawn follows from a secret of the node, which it makes at the first message of a run
    from its operating system and remembers, with the ε: what later messages ask for changes
    neither.  A ``label-epsilon`` of its own node configuration holds whatever the server asks for:
    the smaller of the two counts.

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
    DataError
        If the labels are others than at the first message.
    """
    store, limit = NodeStore(context), context.node_config.get(_OPTION)
    if limit is not None:
        epsilon = min(_number(limit), epsilon or math.inf)
    y = own.to(torch.int64).numpy()
    mark = blake2b(str(y.shape).encode() + y.tobytes(), digest_size=16).hexdigest()
    kept = store.get_text(LABEL_SECRET)
    if not kept:
        kept = {"secret": secrets.token_hex(16), "epsilon": repr(epsilon), "mark": mark}
        store.put_text(LABEL_SECRET, kept)
    if kept.get("mark") != mark:
        raise DataError(
            "This node's labels are others than at the first message of the run, and were told by "
            f"{_OPTION} then: told again they would be known better; keep the data as they were, "
            "or begin another run."
        )
    # That of the first message: answers of two epsilons would tell more than either.
    epsilon, secret = float(kept["epsilon"]), str(kept["secret"])
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
