"""Losses and metrics of class labels: one a sample, or one a position of a text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["IGNORED", "accuracy", "cross_entropy", "token_accuracy"]

IGNORED = -100
"""The label of a position that counts neither in the loss nor in a metric, as in torch."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, C] and labels [N], or of [N, T, C] and [N, T]; shape [].

    Of labels [N, T] those that are `IGNORED` do not count: the mean is over all others.
    """
    if y.ndim > 1:
        kept = y != IGNORED  # first, for the logits of a vocabulary are large
        return functional.cross_entropy(logits[kept], y[kept])
    return functional.cross_entropy(logits, y)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 for each sample whose largest logit is its label, else 0.0; shape [N]."""
    return (logits.argmax(dim=-1) == y).float()


def token_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of a sample's labels that are the largest logit of their position; shape [N].

    Parameters
    ----------
    logits : Tensor
        Shape [N, T, C].
    y : Tensor
        Shape [N, T]; labels that are `IGNORED` do not count, and a sample without any other has 0.
    """
    kept = y != IGNORED
    right = torch.zeros_like(y, dtype=torch.float32)
    right[kept] = (logits[kept].argmax(dim=-1) == y[kept]).float()
    return right.sum(dim=1) / kept.sum(dim=1).clamp(min=1)
