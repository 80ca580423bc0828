"""A round's step of the server half: mini-batches together, in bfloat16, and compiled.

Each is held against what a run does by default (one mini-batch after another, in float32, as it is)
in the same seconds, on smashed data of a round of the method with `server_steps=round`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figure import Figure
from benchmarks.probe import interleave
from sfl_flower.config import RunConfig
from sfl_flower.data import generator
from sfl_flower.server.batched import run_together
from sfl_flower.server.trainer import Batch, Trainer
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["CASES", "Case", "add_arguments", "run"]

REPEATS, ALL = 5, 10**6


@dataclass(frozen=True)
class Case:
    """A server half and a round for it.

    Attributes
    ----------
    name : str
        Of the figures.
    task : str
        A name of `load_task`.
    clients, batch_size : int
        Of the round.
    image : tuple of int
        Shape of a random image that stands for a sample; () takes the task's own samples.
    options : dict
        Of the task.
    """

    name: str
    task: str
    clients: int
    batch_size: int
    image: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """What the figures are of."""
        said = "".join(f", {key}={value}" for key, value in self.options.items())
        return f"{self.task}{said}, {self.clients} clients x {self.batch_size}, one CPU thread"


CASES = (
    Case("small", "fashion_mnist", 10, 32, (1, 28, 28)),
    Case("resnet", "cifar10", 5, 32, (3, 32, 32), {"norm": "group", "train_size": 5000}),
    Case("minilm", "sst2", 4, 8, (), {"train_size": 100}),
)


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    names = [case.name for case in CASES]
    parser.add_argument(
        "--server-compile",
        nargs="*",
        choices=names,
        default=names[:1],
        help="which server halves to compile as well; all but the first take a minute or more",
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield ratios of rounds per second: of the other way over one after another in float32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in CASES:
            yield from _figures(case, case.name in args.server_compile)
    finally:
        torch.set_num_threads(threads)


def _figures(case: Case, compiled: bool) -> Iterator[Figure]:
    task = load_task(case.task, **case.options)
    batches = round_of(case, task)
    plain = _trainer(task)
    low = _trainer(task, server_precision="bfloat16")
    apart = _apart(plain, low, batches[0])
    ways: list[Callable[[], object]] = [
        lambda: step(plain, batches, 0),
        lambda: step(plain, batches, ALL),
        lambda: step(low, batches, 0),
    ]
    alone, together, half = interleave(ways, REPEATS)
    against = f"{1e3 * alone:.1f} ms one after another in float32, median of {REPEATS} in turn"
    yield Figure(
        f"server_together_{case.name}",
        alone / together,
        "ratio",
        None,
        f"{case.setting}: {1e3 * together:.1f} ms with all mini-batches together, against "
        f"{against}",
    )
    yield Figure(
        f"server_bfloat16_{case.name}",
        alone / half,
        "ratio",
        None,
        f"{case.setting}: {1e3 * half:.1f} ms in bfloat16, λ off by {apart:.1%} of its norm, "
        f"against {against}",
    )
    if compiled:
        yield from _compiled(case, task, batches)


def _compiled(case: Case, task: SplitTask, batches: list[Batch]) -> Iterator[Figure]:
    """Yield the ratio of a compiled half, nothing where torch cannot compile it."""
    plain, program = _trainer(task), _trainer(task, server_compile=True)
    start = perf_counter()
    step(program, batches, 0)
    first = perf_counter() - start
    if not program.running.compiled:
        return
    ways = [lambda: step(plain, batches, 0), lambda: step(program, batches, 0)]
    alone, fast = interleave(ways, REPEATS)
    yield Figure(
        f"server_compiled_{case.name}",
        alone / fast,
        "ratio",
        None,
        f"{case.setting}: {1e3 * fast:.1f} ms compiled, {first:.1f} s the first time, against "
        f"{1e3 * alone:.1f} ms as it is, median of {REPEATS} in turn",
    )


def round_of(case: Case, task: SplitTask) -> list[Batch]:
    """Return smashed data and labels of a round's mini-batches, one a client."""
    rng = generator("server benchmark", case.name)
    client = task.build(0).client.eval()
    batches: list[Batch] = []
    for member in range(case.clients):
        if case.image:
            x = torch.from_numpy(
                rng.standard_normal((case.batch_size, *case.image)).astype(np.float32)
            )
            y = torch.from_numpy(rng.integers(task.classes, size=case.batch_size))
        else:
            samples = task.samples("train")
            x, y = task.batch(samples, rng.choice(len(samples), case.batch_size, replace=False))
        with torch.no_grad():
            z: Tensor = client(x)
        batches.append((z.contiguous().numpy(), y.numpy(), (1, member, 0)))
    return batches


def step(trainer: Trainer, batches: list[Batch], most: int) -> None:
    """Take the step of a round, with at most so many samples at one time; 0 is one mini-batch."""
    if most:
        trainer.add_sum(run_together(trainer, batches, [1.0] * len(batches), most)[1])
    else:
        for batch in batches:
            trainer.add([trainer.gradients(*batch)], 1.0)
    trainer.step(len(batches))


def _trainer(task: SplitTask, **options: Any) -> Trainer:
    """Return a new server half that hardly moves, as a run with these options trains it."""
    config = RunConfig(server_lr=1e-6, **options)
    half = copy.deepcopy(task.build(0).server)
    return Trainer(half, task.loss, task.classes, config, task.ignore_label, as_told=True)


def _apart(plain: Trainer, low: Trainer, batch: Batch) -> float:
    """Return how far λ of the second is from that of the first, as a share of the first's norm."""
    wanted, found = (trainer.gradients(*batch).lam for trainer in (plain, low))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
