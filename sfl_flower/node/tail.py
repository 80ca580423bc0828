"""The tail of a model on a client: from features and its own labels to gradients.

By first order this is backprop through the tail alone, which is short.  By zeroth order the tail
only runs forward: along orthonormal directions of the features, whose derivatives each sample tells
apart by its own loss, and along normal directions of the tail's parameters by the mean loss.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.data import generator
from sfl_flower.errors import DataError
from sfl_flower.node.micro_batches import micro_batches
from sfl_flower.node.node import Node
from sfl_flower.training.device import to_array, to_tensor

__all__ = ["Found", "backprop", "forwards"]

STEP = 1e-2
"""μ: how far forwards go, as a share of the root mean square of what they move."""
LEAST = {"features": 1e-3, "parameters": 0.1}
"""The least that this root mean square counts as."""

Found = tuple[float, np.ndarray, dict[str, Tensor]]
"""The mean loss, its gradient at the features, and that at each trained parameter by name."""


def backprop(node: Node, tail: nn.Module, h: np.ndarray, y: Tensor, at: tuple[int, int]) -> Found:
    """Return loss and gradients of a mini-batch by backprop through the tail.

    Parameters
    ----------
    node : Node
        The client, which says how many samples run together.
    tail : nn.Module
        From features to outputs.
    h : numpy.ndarray
        Features, float32 [n, ...].
    y : Tensor
        Labels [n, ...].
    at : tuple of int
        Round and step, which decide what the tail draws.
    """
    names = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    total, rows = 0.0, list[Tensor]()
    for parameter in names.values():
        parameter.grad = None
    for part in micro_batches(node, *at, to_tensor(h, node.device), y):
        given = part.x.detach().clone().requires_grad_()
        with torch.enable_grad(), part.draws():
            loss = part.weighted(node.task.loss(tail(given), part.y))
            loss.backward()
        rows.append(torch.zeros_like(given) if given.grad is None else given.grad)
        total += float(loss.detach())
    sums = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in names.items()}
    for parameter in names.values():
        parameter.grad = None
    return total, to_array(torch.cat(rows)), sums


def forwards(
    node: Node, tail: nn.Module, h: np.ndarray, y: Tensor, at: tuple[int, int], probes: int
) -> Found:
    """Return loss and gradients of a mini-batch by forwards of the tail alone.

    Parameters
    ----------
    node, tail, h, y, at
        As for `backprop`; a label a sample.
    probes : int
        Directions of the features, and as many of the tail's parameters. With as many as a sample
        has features, the gradient there is whole.

    Raises
    ------
    DataError
        If a sample has several labels.
    """
    if y.ndim != 1:
        raise DataError(
            "u_shaped with tail_order=zeroth needs one label a sample, and a batch has labels of "
            f"shape {list(y.shape)}; set tail_order=first."
        )
    features, count = to_tensor(h, node.device), len(y)
    drawn = generator("tail", node.key, *at)
    run = partial(_losses, node, tail, y, at)
    anchor = run(features)
    mean = float(anchor.mean())
    width = features[0].numel()
    used = min(probes, width)
    if used < width:
        along = np.linalg.qr(drawn.standard_normal((width, used)))[0].T.astype(np.float32)
    else:
        along = np.eye(width, dtype=np.float32)
    unit = STEP * max(float(features.square().mean().sqrt()), LEAST["features"])
    real = _real(tail, features)
    found = torch.zeros(count, width, dtype=torch.float64, device=features.device)
    for row in along:
        u = torch.from_numpy(np.ascontiguousarray(row)).to(features)
        told = run(features + unit * u.reshape(features.shape[1:]) * real) - anchor
        found += (told / unit)[:, None] * u
    # Orthonormal directions hold used/width of a gradient's square: the factor makes it unbiased.
    at_features = (found * (width / used / count)).reshape(features.shape).float() * real
    return mean, to_array(at_features), _at_parameters(tail, run, features, mean, drawn, probes)


def _real(tail: nn.Module, features: Tensor) -> Tensor:
    """Return 0 where features are padding, which a tail of texts tells by rows of zeros, else 1."""
    from sfl_flower.split.transformers.block_halves import BlockHalf  # texts alone have it

    if not isinstance(tail, BlockHalf):
        return torch.ones((), device=features.device)
    return (features != 0).any(dim=-1, keepdim=True).to(features.dtype)


def _at_parameters(
    tail: nn.Module,
    run: partial[Tensor],
    features: Tensor,
    mean: float,
    drawn: np.random.Generator,
    probes: int,
) -> dict[str, Tensor]:
    """Return the estimate of the gradient at the tail's parameters, which come back to the bit."""
    names = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in names.items()}
    before = {name: p.detach().clone() for name, p in names.items()}
    squares = sum(float(p.square().sum()) for p in before.values())
    count = sum(p.numel() for p in before.values())
    unit = STEP * max(math.sqrt(squares / max(count, 1)), LEAST["parameters"])
    with torch.no_grad():
        for _ in range(probes):
            us = {
                name: torch.from_numpy(drawn.standard_normal(p.shape, np.float32)).to(p)
                for name, p in names.items()
            }
            for name, p in names.items():
                p.copy_(before[name] + unit * us[name])
            told = (float(run(features).mean()) - mean) / unit / probes
            for name, u in us.items():
                sums[name] += told * u
        for name, p in names.items():
            p.copy_(before[name])
    return sums


def _losses(node: Node, tail: nn.Module, y: Tensor, at: tuple[int, int], h: Tensor) -> Tensor:
    """Return the loss of each sample, float64 [n]."""
    found = []
    with torch.no_grad():
        for part in micro_batches(node, *at, h, y):
            with part.draws():
                output = tail(part.x)
            for row in range(len(part.y)):
                one = slice(row, row + 1)
                found.append(node.task.loss(output[one], part.y[one]).double())
    return torch.stack(found)
