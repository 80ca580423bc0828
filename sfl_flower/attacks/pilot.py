"""What a hijacking server aims at: a half whose outputs it can undo, and the way there.

Feature-space hijacking (Pasquini et al., arXiv 2012.02670): the server answers smashed data not
with the gradient of the loss but with that of a critic, which it trains to tell them from the
outputs of a half of its own, the pilot.  A client that follows learns to give what the pilot would,
and the pilot's decoder then undoes what the client sends.

Unlike the paper's, pilot and decoder are trained before the run and stand still, so a client has a
goal that does not move; the critic is Wasserstein's, with a penalty on its gradient; it is told the
labels, which clients of every method here send beside smashed data; what clients do to smashed data
before they leave is done to the pilot's as well; and what clients get has a norm that falls to 0
over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sfl_flower.attacks.inversion import begin
from sfl_flower.attacks.networks import Critic, Decoder
from sfl_flower.attacks.parts import in_parts
from sfl_flower.data import generator, seeded_torch

__all__ = ["Pilot"]

BATCH, RATE, CRITIC_RATE = 32, 2e-3, 1e-3
PENALTY, STEPS = 10.0, 3
"""How much the critic's penalty counts, and its steps a mini-batch."""


class Pilot:
    """A half and its decoder, and the critic that leads clients to them.

    Parameters
    ----------
    half : nn.Module
        A client half with weights of its own; trained in place.
    x, truth, y : Tensor
        Auxiliary inputs as the model takes them, and in 0 .. 1, and their labels.
    classes : int
        Labels that there are.
    epochs : int
        Passes over them.
    strength : float
        Mean norm of the gradient of a sample's loss in what clients get at first.
    sent : callable
        Gives smashed data as they arrive; gradients pass it.
    *words : str or int
        What weights and order follow from.
    """

    def __init__(
        self,
        half: nn.Module,
        x: Tensor,
        truth: Tensor,
        y: Tensor,
        classes: int,
        epochs: int,
        strength: float,
        sent: Callable[[Tensor], Tensor],
        *words: str | int,
    ) -> None:
        self._drawn = generator("pilot", *words)
        self._strength = strength
        with seeded_torch("pilot", *words):
            first = sent(in_parts(half, x))
            self.decoder = Decoder(first, truth.shape[1:], classes)
            blurred = self.decoder.standard.blurred
            begin(self.decoder, blurred(first, self._drawn), y, truth, self._drawn)
            both = [*half.parameters(), *self.decoder.parameters()]
            optimizer = torch.optim.Adam(both, lr=RATE)
            half.train()
            for _ in range(epochs):
                order = self._drawn.permutation(len(x))
                for rows in np.array_split(order, max(1, len(x) // BATCH)):
                    index = torch.from_numpy(rows)
                    optimizer.zero_grad()
                    given = blurred(sent(half(x[index])), self._drawn)
                    mse_loss(self.decoder(given, y[index]), truth[index]).backward()
                    optimizer.step()
            self.half = half.eval().requires_grad_(False)
            self.decoder.eval().requires_grad_(False)
            self.z: Tensor = sent(in_parts(self.half, x))
            self.critic = Critic(self.z, classes)
        of_class = [np.flatnonzero(y.numpy() == c) for c in range(classes)]
        self._rows = [rows if len(rows) else np.arange(len(x)) for rows in of_class]
        self._judged = torch.optim.Adam(self.critic.parameters(), lr=CRITIC_RATE, betas=(0.5, 0.9))

    def answer(self, z: Tensor, y: Tensor, left: float = 1.0) -> tuple[Tensor, float]:
        """Train the critic on a mini-batch; return what is sent as λ, and the critic's loss.

        Parameters
        ----------
        z, y : Tensor
            Smashed data of a client, [n, ...], and the labels beside them.
        left : float
            The share of the rounds that is left.
        """
        for _ in range(STEPS):
            gap = self._step(z, y, self._like(y))
        given = z.clone().requires_grad_()
        (toward,) = torch.autograd.grad(-self.critic(given, y).sum(), given)
        norm = toward.flatten(1).norm(dim=1).mean().clamp_min(1e-30)
        lam: Tensor = toward * (left * self._strength / (norm * len(z)))
        return lam, gap

    def apart(self, z: Tensor) -> float:
        """Return how far means of smashed data lie from the pilot's, mean of the elements.

        In standard deviations of the pilot's, their mean over the elements.
        """
        gap, spread = (z.mean(0) - self.z.mean(0)).abs().mean(), self.z.std(0).mean()
        return float(gap / spread.clamp_min(1e-30))

    def _like(self, y: Tensor) -> Tensor:
        """Return the pilot's smashed data of auxiliary samples with these labels."""
        rows = [int(self._drawn.choice(self._rows[label])) for label in y.tolist()]
        return self.z[torch.tensor(rows)]

    def _step(self, z: Tensor, y: Tensor, own: Tensor) -> float:
        share = torch.from_numpy(self._drawn.random((len(z), *[1] * (z.dim() - 1)), np.float32))
        between = (share * own + (1 - share) * z).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between, y).sum(), between, create_graph=True)
        steep = (slope * self.critic.spread).flatten(1).norm(dim=1)
        gap = self.critic(own, y).mean() - self.critic(z, y).mean()
        self._judged.zero_grad()
        (PENALTY * (steep - 1).square().mean() - gap).backward()
        self._judged.step()
        return float(gap.detach())
