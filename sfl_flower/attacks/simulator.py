"""Inversion without the client's weights: a simulated half and a decoder of its outputs.

After SDAR (Zhu et al., arXiv 2310.11050).  The passive server trains a half of its own on auxiliary
samples so that the server half classifies its outputs and a critic cannot tell them from smashed
data that arrive; a decoder learns to undo the simulated half, while a second critic keeps what it
makes of arriving smashed data like auxiliary inputs.

Simpler than the paper: the model does not move while it is attacked (the paper's attacker follows
training from the first round), and critics are told no labels. What clients do to smashed data
before they leave is done to the simulated ones as well.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.utils.parametrizations import spectral_norm

from sfl_flower.attacks.inversion import begin
from sfl_flower.attacks.networks import Critic, Decoder
from sfl_flower.attacks.parts import in_parts
from sfl_flower.data import generator, seeded_torch

__all__ = ["fit_simulator"]

BATCH, RATE = 32, 1e-3
ALIKE_Z, ALIKE_X = 0.1, 1e-3
"""How much the critics of smashed data and of inputs count, beside the losses."""


def fit_simulator(
    half: nn.Module,
    classify: Callable[[Tensor, Tensor], Tensor],
    auxiliary: tuple[Tensor, Tensor, Tensor],
    observed: tuple[Tensor, Tensor],
    classes: int,
    sent: Callable[[Tensor], Tensor],
    epochs: int,
    *words: str | int,
) -> nn.Module:
    """Return a decoder of smashed data that was trained without the client half.

    Parameters
    ----------
    half : nn.Module
        A client half with weights of its own; it is trained in place.
    classify : callable
        The mean loss of smashed data and labels: the server half's.
    auxiliary : tuple of Tensor
        Inputs as the model takes them, labels, and inputs in 0 .. 1.
    observed : tuple of Tensor
        Smashed data of others, as the server gets them, [M, ...], and their labels.
    classes : int
        Labels that there are.
    sent : callable
        Gives smashed data as they arrive; gradients pass it.
    epochs : int
        Passes over the auxiliary samples.
    *words : str or int
        What weights and order follow from.
    """
    (x, y, truth), (arrived, labels) = auxiliary, observed
    drawn = generator("simulator", *words)
    with seeded_torch("simulator", *words):
        decoder = Decoder(arrived, truth.shape[1:], classes)
        blurred = decoder.standard.blurred
        begin(decoder, blurred(sent(in_parts(half, x)), drawn), y, truth, drawn)
        critics = Critic(arrived, wrap=spectral_norm), Critic(truth, wrap=spectral_norm)
        made = torch.optim.Adam([*half.parameters(), *decoder.parameters()], lr=RATE)
        judging = [p for critic in critics for p in critic.parameters()]
        judged = torch.optim.Adam(judging, lr=RATE, betas=(0.5, 0.999))
        half.train()
        for _ in range(epochs):
            for rows in np.array_split(drawn.permutation(len(x)), max(1, len(x) // BATCH)):
                index = torch.from_numpy(rows)
                others = torch.from_numpy(drawn.integers(len(arrived), size=len(rows)))
                z = arrived[others]
                simulated, real = sent(half(x[index])), truth[index]
                seen = decoder(z, labels[others])
                judged.zero_grad()
                pairs = ((z, simulated.detach()), (real, seen.detach()))
                told = [_told(c, *pair) for c, pair in zip(critics, pairs, strict=True)]
                torch.stack(told).sum().backward()
                judged.step()
                made.zero_grad()
                loss = classify(simulated, y[index]) + ALIKE_Z * _alike(critics[0], simulated)
                loss = loss + mse_loss(decoder(blurred(simulated.detach(), drawn), y[index]), real)
                (loss + ALIKE_X * _alike(critics[1], seen)).backward()
                made.step()
    return decoder.eval().requires_grad_(False)


def _told(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Return the loss of a critic that should say 1 of real ones and 0 of made ones."""
    said, other = critic(real), critic(made)
    return binary_cross_entropy_with_logits(
        torch.cat([said, other]), torch.cat([torch.ones_like(said), torch.zeros_like(other)])
    )


def _alike(critic: nn.Module, made: Tensor) -> Tensor:
    """Return the loss of whoever wants to be taken for real."""
    said = critic(made)
    return binary_cross_entropy_with_logits(said, torch.ones_like(said))
