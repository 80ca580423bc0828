"""Outputs that are probabilities already, under a loss that makes probabilities of them itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["are_probabilities", "sigmoid_before_logits"]

_MOVES = (
    "View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "Select", "Slice",
    "Transpose", "T", "Permute", "Clone",
)  # fmt: skip
"""What autograd calls operations that leave numbers as they are."""


def are_probabilities(output: Tensor) -> bool:
    """Tell whether the outputs of each sample, shape [..., C], are at least 0 and sum to 1."""
    sums = output.sum(dim=-1)
    return bool((output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4))


def sigmoid_before_logits(
    server: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, y: Tensor
) -> bool:
    """Tell whether a model ends in a sigmoid and its loss, of binary logits, has one of its own.

    Numbers between 0 and 1 do not say where they come from, so autograd's record is asked.

    Parameters
    ----------
    server : nn.Module
        The server half.
    loss : callable
        Mean loss of outputs and labels.
    z : Tensor
        Smashed data of a few samples.
    y : Tensor
        Their labels.
    """
    try:
        with torch.enable_grad():
            output = server(z.detach().requires_grad_())
            value = loss(output.detach().requires_grad_(), y)
    except Exception:  # what does not run with a graph is found elsewhere, with its reason
        return False
    last = output.grad_fn
    while last is not None and _operation(last) in _MOVES:
        last = last.next_functions[0][0]
    return _operation(last) == "Sigmoid" and _has(value.grad_fn, "BinaryCrossEntropyWithLogits")


def _operation(node: Any) -> str:
    return "" if node is None else node.name().partition("Backward")[0]


def _has(node: Any, operation: str) -> bool:
    """Tell whether an operation is among those that a result was made by."""
    left, seen = [node], set()
    while left:
        node = left.pop()
        if _operation(node) == operation:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return False
