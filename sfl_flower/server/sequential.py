"""Training on a client's mini-batches one after another, all of them or none.

A method whose server half takes a step for every mini-batch has moved it before a later one of the
same reply turns out to be of no use.  Such a reply leaves nothing behind: what it moved goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.server.trainer import Trainer
from sfl_flower.training.optim import load_slots, slots

__all__ = ["Batch", "learn_in_turn"]

Batch = tuple[np.ndarray, np.ndarray, tuple[int, int, int]]
"""Smashed data, labels, and the round, partition and step that name them."""


def learn_in_turn(trainers: Sequence[Trainer], batches: Iterable[Batch]) -> list[float]:
    """Take one optimiser step of every trainer on each mini-batch, in order.

    Parameters
    ----------
    trainers : sequence of Trainer
        What learns from the smashed data; not empty.
    batches : iterable of Batch
        The mini-batches of one client's reply.

    Returns
    -------
    list of float
        The first trainer's loss at each mini-batch.

    Raises
    ------
    WireError
        If a mini-batch cannot be used.  Weights, buffers and optimisers' state of all trainers are
        then those before the first, to the bit.
    """
    todo, losses = list(batches), []
    # With one mini-batch all gradients are there, or refused, before the first step.
    with _undone(trainers, steps=len(todo) > 1):
        for batch in todo:
            found = [trainer.gradients(*batch) for trainer in trainers]
            for trainer, part in zip(trainers, found, strict=True):
                trainer.add([part], 1.0)
                trainer.step()
            losses.append(found[0].loss)
    return losses


@contextmanager
def _undone(trainers: Sequence[Trainer], steps: bool) -> Iterator[None]:
    """Put back what a block moved if it raises: buffers, and with `steps` what steps move."""
    buffers = [_clones(trainer.module.named_buffers()) for trainer in trainers]
    moved = [
        (_clones(_trained(trainer.module)), slots(trainer.optimizer)) if steps else None
        for trainer in trainers
    ]
    try:
        yield
    except BaseException:
        for trainer, own, stepped in zip(trainers, buffers, moved, strict=True):
            _put_back(trainer.module.named_buffers(), own)
            if stepped is not None:
                _put_back(_trained(trainer.module), stepped[0])
                load_slots(trainer.optimizer, stepped[1])
        raise


def _trained(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def _clones(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in named}


def _put_back(named: Iterable[tuple[str, Tensor]], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in named:
            tensor.copy_(values[name])
