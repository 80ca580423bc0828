"""How near guides of public inputs come: to one round's clients, and over rounds to all of them.

At one client half, MiniLM behind its last block on SST-2 with a head that has seen the training
sentences once.  Within a round q, the gradient that the server sees on public sentences, is held
against the gradient of the round's own sentences, as they are and with the singular values of each
matrix made equal; beside it stands the gradient of another round's sentences.  Over rounds the mean
of K of each is held against the gradient over all training sentences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import features
from benchmarks.figure import Figure
from sfl_flower.data import generator
from sfl_flower.server.guide import guide_maker
from sfl_flower.server.guide_forms import FORMS
from sfl_flower.task import SplitTask
from sfl_flower.zo import ParameterVector

__all__ = ["add_arguments", "cosine_squared", "run"]

AT = (1, 4, 16, 48)
"""Rounds whose mean is looked at; the last is a run of `learn`."""
BATCH, SAMPLES, PUBLIC = 32, 160, 256
"""Sentences of a step of the head, of a round's clients together, and of a round's guide."""
HEAD_LR = 0.003
WITHIN = 5
"""First rounds whose guides are held against their own sentences."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--guide-limits-sentences", type=int, default=7_680, help="of the training set"
    )
    parser.add_argument(
        "--guide-limits-rounds", type=int, default=AT[-1], help="means are of at most"
    )
    parser.add_argument("--guide-limits-public", type=int, default=PUBLIC, help="public sentences")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the squared cosines."""
    task = features.task_of(features.SENTENCES, "block:3")
    yield from figures(
        task, args.guide_limits_sentences, args.guide_limits_rounds, args.guide_limits_public
    )


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
    within: dict[str, list[float]] = {}
    last: Tensor | None = None
    means = {"guide": torch.zeros(vector.size), "batch": torch.zeros(vector.size)}
    for number in range(1, rounds + 1):
        rng = generator("guide_limits", 0, number)
        rows = torch.from_numpy(np.sort(rng.choice(len(x), min(SAMPLES, len(x)), replace=False)))
        z, lam, gradient = back(rows)
        q = maker.gradient(number, [(z.numpy(), lam.numpy(), 1.0)])
        means["guide"] += q
        means["batch"] += gradient
        if number <= WITHIN:
            others = {"own": q} | ({} if last is None else {"other": last})
            for (name, other), (form, make) in product(others.items(), FORMS.items()):
                found = cosine_squared(make(other, vector.shapes), make(gradient, vector.shapes))
                within.setdefault(f"{name}_{form}", []).append(found)
        last = gradient
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
    words = {"own": f"guides of {public} of the public samples", "other": "another round's batch"}
    for name, values in within.items():
        of, form = name.split("_")
        yield Figure(
            f"cosine_squared_{name}",
            fmean(values),
            "ratio",
            None,
            f"{task.name}: {words[of]} with the gradient of a round's {SAMPLES} samples, form "
            f"{form}, mean of {len(values)}",
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
