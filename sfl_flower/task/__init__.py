"""What a user brings: a model, where to cut it, a loss and data."""

from __future__ import annotations

from sfl_flower.data import Samples
from sfl_flower.task.own_data import NOT_DIVIDED, NOT_THEIR_OWN
from sfl_flower.task.task import Split, SplitTask
from sfl_flower.training.measures import accuracy, binary_accuracy, cross_entropy

__all__ = [
    "NOT_DIVIDED",
    "NOT_THEIR_OWN",
    "Samples",
    "Split",
    "SplitTask",
    "accuracy",
    "binary_accuracy",
    "cross_entropy",
]
