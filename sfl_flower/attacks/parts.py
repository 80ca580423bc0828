"""Forwards of many samples, a few at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfl_flower.data import chunks

__all__ = ["ROWS", "in_parts"]

ROWS = 250
"""Samples of a forward."""


def in_parts(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Return what a function gives for tensors with the samples first, without a graph.

    Parameters
    ----------
    function : callable
        Gives a tensor with the samples first, each of which follows from its own rows alone.
    *given : Tensor
        What it is given, [N, ...] each.
    """
    with torch.no_grad():
        found = [function(*(t[rows] for t in given)) for rows in chunks(len(given[0]), ROWS)]
        return torch.cat(found)
