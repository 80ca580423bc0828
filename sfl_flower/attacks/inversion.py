"""Decoder inversion: a network learns from auxiliary samples what input gave the smashed data.

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
from torch.nn.functional import mse_loss

from sfl_flower.attacks.networks import Decoder
from sfl_flower.data import generator, seeded_torch

__all__ = ["Encode", "fit_decoder"]

Encode = Callable[[np.random.Generator], Tensor]
"""Gives the smashed data of the auxiliary samples as they arrive, with noise drawn anew."""

BATCH, RATE, HELD = 32, 2e-3, 0.1
"""Samples of a step, Adam's rate, and the share of the samples that chooses the epoch."""
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Penalties that are tried, as shares of the mean squared norm of smashed data."""
ROWS = 4000
"""Samples of the regression, at most: it holds a number for each pair of them."""


def fit_decoder(encode: Encode, truth: Tensor, epochs: int, *words: str | int) -> nn.Module:
    """Return a decoder trained by Adam on the squared error, as it was at its best epoch.

    It begins as ridge regression, where a linear decoder is not too large, so it is never far
    behind what is linear.

    Parameters
    ----------
    encode : callable
        Called once an epoch.
    truth : Tensor
        The auxiliary inputs in 0 .. 1, [N, ...].
    epochs : int
        Passes over them; a tenth of them is held back and chooses among the passes.
    *words : str or int
        What weights, order and noise follow from.
    """
    drawn = generator("decoder", *words)
    z = encode(drawn)
    with seeded_torch("decoder", *words):
        decoder = Decoder(z, truth.shape[1:])
    order = drawn.permutation(len(truth))
    held = max(1, round(HELD * len(truth)))
    check, own = torch.from_numpy(order[:held]), order[held:]

    def error() -> float:
        with torch.no_grad():
            return float(mse_loss(decoder(z[check]).clamp(0, 1), truth[check]))

    _begin(decoder, z[torch.from_numpy(own)], truth[torch.from_numpy(own)], error)
    best, kept = error(), copy.deepcopy(decoder.state_dict())
    optimizer = torch.optim.Adam(decoder.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        z = encode(drawn) if epoch else z
        for rows in np.array_split(drawn.permutation(own), max(1, len(own) // BATCH)):
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            mse_loss(decoder(z[index]), truth[index]).backward()
            optimizer.step()
        schedule.step()
        if (now := error()) < best:
            best, kept = now, copy.deepcopy(decoder.state_dict())
    decoder.load_state_dict(kept)
    return decoder.eval().requires_grad_(False)


def _begin(decoder: Decoder, z: Tensor, truth: Tensor, error: Callable[[], float]) -> None:
    """Set a decoder to the best linear one, or the mean where a linear one would be too large."""
    mean = truth.mean(0)
    layer = decoder.direct
    if layer is None:
        assert decoder.last.bias is not None
        decoder.last.bias.data.copy_(mean.flatten() if mean.dim() != 3 else mean.mean((1, 2)))
        return
    for own in decoder.last.parameters():
        own.data.zero_()
    z, truth = z[:ROWS], truth[:ROWS]
    rows = decoder.standard(z).flatten(1).double()
    centre, wanted = rows.mean(0), (truth - mean).flatten(1).double()
    products = (rows - centre) @ (rows - centre).T
    found: list[tuple[float, Tensor]] = []
    for share in RIDGES:
        ridge = share * float(products.diagonal().mean()) + 1e-9
        inner = torch.linalg.solve(products + ridge * torch.eye(len(rows)).double(), wanted)
        _load(layer, (rows - centre).T @ inner, centre, mean)
        found.append((error(), layer.weight.detach().clone()))
    _load(layer, min(found, key=lambda pair: pair[0])[1].T.double(), centre, mean)


def _load(layer: nn.Linear, weight: Tensor, centre: Tensor, mean: Tensor) -> None:
    layer.weight.data.copy_(weight.T)
    layer.bias.data.copy_(mean.flatten() - centre @ weight)
