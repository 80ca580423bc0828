"""Dry runs: real strategies, clients, messages and ledger around halves that compute nothing.

The bytes of a run follow from shapes, sizes and schedules, not from what the model computes.  In a
dry run each half keeps its weights and returns constants of the shape that its own forward gives,
so a round of a published setting takes seconds; everything else is the code of a real run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import torch
from torch import Tensor, nn

from benchmarks.trial import train
from sfl_flower.run.run import Plan
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.split.graph.half import Half
from sfl_flower.split.transformers.block_halves import ClientBlocks, ServerBlocks
from sfl_flower.task import Samples, SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.wire import CATEGORIES

__all__ = ["CHARGED", "RoundBytes", "costless", "dry_rounds", "dry_task"]

CHARGED = tuple(name for name in CATEGORIES if name not in ("labels", "control"))
"""Categories that the published figures charge: neither labels nor what frames the messages."""
TEST_IMAGES = 16


@dataclass(frozen=True)
class RoundBytes:
    """What one round put on the wire.

    Attributes
    ----------
    up, down : dict[str, int]
        Bytes by category.
    samples : int
        Samples that clients trained on.
    """

    up: Mapping[str, int]
    down: Mapping[str, int]
    samples: int

    def charged(self, names: tuple[str, ...] = CHARGED) -> int:
        """Return the bytes of these categories, both ways."""
        return sum(self.up[name] + self.down[name] for name in names)


@contextmanager
def costless(
    but: Callable[[Tensor], bool] = lambda x: False,
    lengths: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Let every half of a cut model return zeros of its own output's shape, for the block.

    Gradients reach the input and one parameter, so optimisers and alignments run; all are zero.
    Texts [N, T, H] are ones, and the gradients at them are not zero, for zeros would be padding,
    which does not travel.

    Parameters
    ----------
    but : callable
        Tells for an input whether a half that gets it computes as ever.
    lengths : callable, optional
        Tells for token ids [N, T] how many positions of each text are real, [N]; all by default.
    """
    with ExitStack() as stack:
        for kind in (Half, ClientBlocks, ServerBlocks):
            dry = _dry(kind.forward, but, lengths)
            stack.enter_context(patch.object(kind, "forward", dry))
        yield


def _dry(
    run: Callable[..., Any],
    but: Callable[[Tensor], bool],
    lengths: Callable[[Tensor], Tensor] | None,
) -> Callable[..., Any]:
    """Return what stands for a half's forward."""

    def forward(half: nn.Module, *inputs: Tensor) -> Any:
        (x,) = inputs
        if but(x):
            return run(half, x)
        if (shape := half.__dict__.get("_dry_shape")) is None:
            shape = half.__dict__["_dry_shape"] = _shape(run, half, x)
        out = torch.zeros(len(x), *shape)
        if len(shape) == 2:
            given = lengths is not None and not x.is_floating_point()
            ends = lengths(x) if lengths and given else torch.full((len(x),), shape[0])
            out[torch.arange(shape[0]) < ends[:, None]] = 1.0
        if x.ndim == 3 and x.requires_grad:
            # One output moves with all that is real, by little; were they all to, the gradient of
            # cross entropy would be zero.
            real = (x.detach() != 0).any(dim=-1, keepdim=True)
            moved = 1e-3 * (x * real).sum(dim=(1, 2))
            first = torch.zeros(shape)
            first[..., 0] = 1.0
            out = out + moved.reshape(-1, *[1] * len(shape)) * first
        trained = next((p for p in half.parameters() if p.requires_grad), None)
        if trained is None:
            return out + 0.0 * x.reshape(-1)[0]
        return out + 0.0 * x.reshape(-1)[0] * trained.reshape(-1)[0]

    return forward


def _shape(run: Callable[..., Tensor], half: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Return the shape of a half's output, without the batch; neither state nor hooks notice."""
    aside = copy.deepcopy(half).eval()
    for module in aside.modules():
        module._forward_hooks.clear()
    with torch.no_grad():
        return tuple(run(aside, torch.zeros_like(x[:1])).shape[1:])


def dry_task(options: Mapping[str, Any], images: int) -> SplitTask:
    """Return the task of some options on blank images, labels in turn.

    Parameters
    ----------
    options : Mapping[str, Any]
        Flat options of a run; those of the task begin with ``task.``.
    images : int
        Training images; they take the memory of one.
    """
    own = {
        key.removeprefix("task."): value
        for key, value in options.items()
        if key.startswith("task.") and key not in ("task.train_size", "task.test_size")
    }
    # Random weights have the sizes of pre-trained ones, and need no download.
    task = load_task(options["task"], **{**own, "pretrained": False})
    return replace(
        task,
        train=partial(_blank, images),
        test=partial(_blank, TEST_IMAGES),
        token=uuid4().hex,
    )


def _blank(count: int) -> Samples:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    return Samples(pixels.expand(count, -1, -1, -1), torch.arange(count) % 10)


def dry_rounds(options: Mapping[str, Any], rounds: int, images: int) -> list[RoundBytes]:
    """Return what each of the first rounds of a run puts on the wire.

    Parameters
    ----------
    options : Mapping[str, Any]
        Flat options of the run, as of a preset.
    rounds : int
        Rounds to run; the options' own number of rounds stays what it is.
    images : int
        As for `dry_task`.

    Raises
    ------
    TrainingError
        If a reply was missing or refused: the bytes would be of another run.
    """
    task = dry_task(options, images)
    plan = Plan.read({**options, "eval_every": 10**6})
    ledgers: list[tuple[dict[str, int], dict[str, int], int]] = []

    def note(strategy: SplitStrategy) -> None:
        ledger = strategy.ledger
        ledgers.append((dict(ledger.up), dict(ledger.down), ledger.samples))

    with costless():
        train(task, plan, rounds, note)
    return [
        RoundBytes(
            {name: after[0][name] - before[0][name] for name in CATEGORIES},
            {name: after[1][name] - before[1][name] for name in CATEGORIES},
            after[2] - before[2],
        )
        for before, after in pairwise(ledgers)
    ]
