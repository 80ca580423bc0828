"""Training on a client's mini-batches one after another, all of them or none.

A method whose server half takes a step for every mini-batch has moved it before a later one of the
same reply turns out to be of no use.  Such a reply leaves nothing behind: what it moved goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from sfl_flower.server.trainer import Batch, Gradients, Trainer
from sfl_flower.training.modes import buffers_put_back
from sfl_flower.training.optim import load_slots, slots

__all__ = ["learn_in_turn"]


def learn_in_turn(trainers: Sequence[Trainer], batches: Iterable[Batch]) -> list[Gradients]:
    """Take one optimiser step of every trainer on each mini-batch, in order.

    Parameters
    ----------
    trainers : sequence of Trainer
        What learns from the smashed data; not empty.
    batches : iterable of Batch
        The mini-batches of one client's reply.

    Returns
    -------
    list of Gradients
        λ and loss of the first trainer for each mini-batch, at the weights before its step; without
        the gradients at the weights, which the step used up.

    Raises
    ------
    WireError
        If a mini-batch cannot be used.  Weights, buffers and optimisers' state of all trainers are
        then those before the first, to the bit.
    """
    todo, first = list(batches), []
    with ExitStack() as undone:
        undone.enter_context(buffers_put_back(*(trainer.module for trainer in trainers)))
        if len(todo) > 1:  # of one, all gradients are there or refused before the first step
            undone.enter_context(_steps_taken_back(trainers))
        for batch in todo:
            found = [trainer.gradients(*batch) for trainer in trainers]
            for trainer, part in zip(trainers, found, strict=True):
                trainer.add([part], 1.0)
                trainer.step()
            first.append(replace(found[0], weights=[]))
    return first


@contextmanager
def _steps_taken_back(trainers: Sequence[Trainer]) -> Iterator[None]:
    """Run a block that steps; if it raises, weights and optimisers' state go back."""
    before = [
        (
            [(p, p.detach().clone()) for p in trainer.module.parameters() if p.requires_grad],
            slots(trainer.optimizer),
        )
        for trainer in trainers
    ]
    try:
        yield
    except BaseException:
        for trainer, (weights, state) in zip(trainers, before, strict=True):
            with torch.no_grad():
                for parameter, value in weights:
                    parameter.copy_(value)
            load_slots(trainer.optimizer, state)
        raise
