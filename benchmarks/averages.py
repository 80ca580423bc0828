"""What rounds add up to: guides of public inputs, and gradients of the clients' own batches.

At one client half, MiniLM behind its last block on SST-2 with a head that has seen the training
sentences once.  The mean over K rounds of q, the gradient that the server sees on public sentences,
and that over K batches of first order are each held against the gradient over all training
sentences.  What a batch gets wrong is noise and averages out; what public sentences get wrong the
same way in every round does not, and no momentum, rate or number of rounds takes it away.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import features
from benchmarks.figure import Figure
from sfl_flower.data import generator
from sfl_flower.server.guide import guide_maker
from sfl_flower.task import SplitTask
from sfl_flower.zo import ParameterVector

__all__ = ["add_arguments", "cosine_squared", "run"]

AT = (1, 4, 16, 48)
"""Rounds whose mean is looked at; the last is a run of `learn`."""
BATCH, SAMPLES, PUBLIC = 32, 160, 256
"""Sentences of a step of the head, of a round's clients together, and of a round's guide."""
HEAD_LR = 0.003


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--averages-sentences", type=int, default=7_680, help="of the training set")
    parser.add_argument("--averages-rounds", type=int, default=AT[-1], help="means are of at most")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the squared cosines."""
    task = features.task_of(features.SENTENCES, "block:3")
    yield from figures(task, args.averages_sentences, args.averages_rounds)


def figures(task: SplitTask, sentences: int, rounds: int, public: int = PUBLIC) -> Iterator[Figure]:
    """Yield the squared cosine of each mean with the gradient over so many training samples."""
    halves = task.build(0)
    client, server = halves.client.eval(), halves.server
    vector = ParameterVector(client)
    x, y = task.batch(task.samples("train"), slice(0, sentences))
    _train_head(task, client, server, x, y)

    def back(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z, λ of the mean loss, and Jᵀλ of some training samples."""
        z = client(x[rows])
        cut = z.detach().requires_grad_()
        (lam,) = torch.autograd.grad(task.loss(server(cut), y[rows]), cut)
        parts = torch.autograd.grad(z, vector.parameters, lam)
        return cut.detach(), lam, torch.cat([part.reshape(-1) for part in parts])

    whole = torch.zeros(vector.size)
    for rows in torch.arange(len(x)).split(SAMPLES):
        whole += len(rows) / len(x) * back(rows)[2]
    maker = guide_maker("public", task, 0, client, vector, public)
    assert maker is not None
    means = {"guide": torch.zeros(vector.size), "batch": torch.zeros(vector.size)}
    for number in range(1, rounds + 1):
        rng = generator("averages", 0, number)
        rows = torch.from_numpy(np.sort(rng.choice(len(x), min(SAMPLES, len(x)), replace=False)))
        z, lam, gradient = back(rows)
        means["guide"] += maker.gradient(number, [(z.numpy(), lam.numpy(), 1.0)])
        means["batch"] += gradient
        if number not in AT and number != rounds:
            continue
        words = {
            "guide": f"guides of {public} of the public samples",
            "batch": f"batches of {SAMPLES} samples",
        }
        for name, mean in means.items():
            yield Figure(
                f"cosine_squared_{name}_{number}",
                cosine_squared(mean, whole),
                "ratio",
                None,
                f"{task.name}: mean of {number} {words[name]}, with the gradient over {len(x)}",
            )


def cosine_squared(one: Tensor, other: Tensor) -> float:
    """Return the squared cosine of two vectors."""
    one, other = one.double(), other.double()
    return float((one @ other) ** 2 / (one.square().sum() * other.square().sum()))


def _train_head(
    task: SplitTask, client: nn.Module, server: nn.Module, x: Tensor, y: Tensor
) -> None:
    optimizer = torch.optim.AdamW(server.parameters(), lr=HEAD_LR)
    for rows in torch.arange(len(x)).split(BATCH):
        with torch.no_grad():
            z = client(x[rows])
        optimizer.zero_grad()
        task.loss(server(z), y[rows]).backward()
        optimizer.step()
