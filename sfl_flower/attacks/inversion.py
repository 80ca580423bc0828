"""Decoder inversion: a network learns from auxiliary samples what input gave the smashed data.

It is told the labels, which are sent beside smashed data.

The attacker is the server, honest and curious.  It knows the client half, for in every method with
a cut it knows the weights (by the journal, or because they pass it), so it runs the half on samples
of its own; nothing but its outputs is used, so whoever may query the half can do the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from sfl_flower.attacks.networks import Decoder
from sfl_flower.attacks.parts import in_parts
from sfl_flower.data import generator, seeded_torch

__all__ = ["Encode", "begin", "fit_decoder"]

Encode = Callable[[np.random.Generator], Tensor]
"""Gives the smashed data of the auxiliary samples as they arrive, with noise drawn anew."""

BATCH, RATE, HELD = 32, 2e-3, 0.1
"""Samples of a step, Adam's rate, and the share of the samples that chooses the epoch."""
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Penalties that are tried, as shares of the mean squared norm of smashed data."""
ROWS = 4000
"""Samples of the regression, at most: it holds a number for each pair of them."""


def fit_decoder(
    encode: Encode, y: Tensor, truth: Tensor, classes: int, epochs: int, *words: str | int
) -> nn.Module:
    """Return a decoder trained by Adam on the squared error, as it was at its best epoch.

    It begins as ridge regression where a linear decoder has at most 4 million weights, so it is
    never far behind what is linear; beyond, it begins as the mean input of the label.

    Parameters
    ----------
    encode : callable
        Called once an epoch.
    y, truth : Tensor
        Labels of the auxiliary inputs, [N], and the inputs in 0 .. 1, [N, ...].
    classes : int
        Labels that there are.
    epochs : int
        Passes over them; a tenth of them is held back and chooses among the passes.
    *words : str or int
        What weights, order and noise follow from.
    """
    drawn = generator("decoder", *words)
    z = encode(drawn)
    with seeded_torch("decoder", *words):
        decoder = Decoder(z, truth.shape[1:], classes)
    check, own = begin(decoder, z, y, truth, drawn)

    def error() -> float:
        return _error(decoder, z[check], y[check], truth[check])

    best, kept = error(), copy.deepcopy(decoder.state_dict())
    optimizer = torch.optim.Adam(decoder.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        z = encode(drawn) if epoch else z
        for rows in np.array_split(drawn.permutation(own), max(1, len(own) // BATCH)):
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            mse_loss(decoder(z[index], y[index]), truth[index]).backward()
            optimizer.step()
        schedule.step()
        if (now := error()) < best:
            best, kept = now, copy.deepcopy(decoder.state_dict())
    decoder.load_state_dict(kept)
    return decoder.eval().requires_grad_(False)


def begin(
    decoder: Decoder, z: Tensor, y: Tensor, truth: Tensor, drawn: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Set a decoder to the best one that is linear in smashed data and labels.

    To the mean input of each label where that is better, or a linear one would be too large.

    Parameters
    ----------
    decoder : Decoder
        Changed in place.
    z, y, truth : Tensor
        Auxiliary smashed data as they arrive, labels and inputs in 0 .. 1, [N, ...] each.
    drawn : numpy.random.Generator
        Says which tenth is held back and chooses the penalty.

    Returns
    -------
    tuple of Tensor and numpy.ndarray
        The rows that are held back, and the others.
    """
    order, held = drawn.permutation(len(truth)), max(1, round(HELD * len(truth)))
    check, own = torch.from_numpy(order[:held]), order[held:]
    kept = torch.from_numpy(own)[:ROWS]
    for last in decoder.last.parameters():
        last.data.zero_()
    layer, of_class = decoder.direct, decoder.of_class.weight
    inputs, labels = truth[kept].flatten(1).double(), y[kept]
    mean = inputs.mean(0)
    of_class.data.copy_(mean)
    for label in labels.unique():
        of_class.data[label] = inputs[labels == label].mean(0).float()
    if layer is None:
        return check, own
    layer.weight.data.zero_()
    layer.bias.data.zero_()

    def error() -> float:
        return _error(decoder, z[check], y[check], truth[check])

    best, found = error(), copy.deepcopy(decoder.state_dict())
    rows = decoder.standard(z[kept]).flatten(1).double()
    centre = rows.mean(0)
    rows = rows - centre
    size = float(rows.square().sum(1).mean().sqrt()) or 1.0
    told = size * one_hot(labels, len(of_class)).double()
    products = rows @ rows.T + told @ told.T
    for share in RIDGES:
        ridge = share * float(products.diagonal().mean())
        inner = torch.linalg.solve(products + ridge * torch.eye(len(rows)).double(), inputs - mean)
        weight = rows.T @ inner
        layer.weight.data.copy_(weight.T)
        of_class.data.copy_(mean - centre @ weight + size * told.T @ inner)
        if (now := error()) < best:
            best, found = now, copy.deepcopy(decoder.state_dict())
    decoder.load_state_dict(found)
    return check, own


def _error(decoder: nn.Module, z: Tensor, y: Tensor, truth: Tensor) -> float:
    return float(mse_loss(in_parts(decoder, z, y).clamp(0, 1), truth))
