"""Large cohorts: the time of a sampled client, the server's memory, and waves in the simulation."""

from __future__ import annotations

import argparse
import gc
import logging
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Message
from torch import nn

from benchmarks.figure import Figure
from sfl_flower import Samples, SplitTask, simulate
from sfl_flower.data import generator
from sfl_flower.report import RoundRecord
from sfl_flower.run.inline import InlineGrid

__all__ = ["add_arguments", "run"]

SMALL, LARGE = (100, 10), (10_000, 1_000)
"""Clients, and how many of them take part in a round."""
MOST_SCALING, MOST_GROWTH = 1.3, 1.05
METERED = 2
"""First rounds, which are not counted: clients measure memory in one, operations in the other."""
BATCH, SAMPLES, FEATURES, HIDDEN = 4, 40_000, 16, 8
LONG, EARLY = 150, 50
"""Rounds over which memory is watched, and after how many it is taken to be full."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--cohort-method", default="ho_sfl", help="what is trained inline (default ho_sfl)"
    )
    parser.add_argument(
        "--cohort-rounds", type=int, default=3, help="rounds that count (default 3)"
    )
    parser.add_argument(
        "--cohort-ray", type=int, default=500, metavar="N",
        help="clients of the runs on Ray, all of them in a round; 0 for none (default 500)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield how time and memory go with the cohort, and what waves bring on Ray."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # Clients that are asked more rarely have more to catch up with: as many rounds of both.
    small = _inline(args.cohort_method, *SMALL, 10 * args.cohort_rounds)
    large = _inline(args.cohort_method, *LARGE, args.cohort_rounds)
    yield from _scaling(args.cohort_method, small, large)
    yield _growth(args.cohort_method)
    yield _held(args.cohort_method)
    if args.cohort_ray:
        yield _waves(args.cohort_ray)


@dataclass
class _Watch:
    """Processor time after each round, all of it and what clients took of it."""

    total: list[float] = field(default_factory=list)
    clients: list[float] = field(default_factory=list)
    spent: float = 0.0

    def __call__(self, record: RoundRecord) -> None:
        self.total.append(process_time())
        self.clients.append(self.spent)

    def per_client(self, cohort: int) -> tuple[float, float]:
        """Return the median seconds of a sampled client, and of the server for it."""
        total, clients = (
            [b - a for a, b in pairwise(each[METERED:])] for each in (self.total, self.clients)
        )
        server = [a - b for a, b in zip(total, clients, strict=True)]
        return median(total) / cohort, median(server) / cohort


def _task() -> SplitTask:
    def data(name: str, count: int) -> Samples:
        drawn = generator("cohort benchmark", name).standard_normal((count, FEATURES), np.float32)
        x = torch.from_numpy(drawn)
        return Samples(x, (x[:, 0] > 0).long())

    return SplitTask(
        "cohort",
        lambda: nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2)),
        cut="1",
        train=lambda: data("train", SAMPLES),
        test=lambda: data("test", 50),
        classes=2,
    )


def _options(clients: int, sampled: int, rounds: int, **more: Any) -> dict[str, Any]:
    return {
        "clients": clients,
        "sampled": sampled,
        "rounds": rounds,
        "batch_size": BATCH,
        "partition": "iid",
        "eval_every": 10**6,
        **more,
    }


def _inline(method: str, clients: int, sampled: int, rounds: int) -> tuple[float, float]:
    watch, deliver = _Watch(), InlineGrid.deliver

    def timed(grid: InlineGrid, message: Message) -> Message | None:
        began = process_time()
        reply = deliver(grid, message)
        watch.spent += process_time() - began
        return reply

    options = _options(clients, sampled, METERED + rounds)
    with patch.object(InlineGrid, "deliver", timed):
        simulate(_task(), method, backend="inline", on_round=watch, **options)
    return watch.per_client(sampled)


def _scaling(
    method: str, small: tuple[float, float], large: tuple[float, float]
) -> Iterator[Figure]:
    said = (
        f"{method}, a net of {FEATURES * HIDDEN + HIDDEN} client parameters, batches of {BATCH}, "
        f"inline, one thread, processor time, medians over rounds"
    )
    yield Figure(
        "cohort_scaling",
        large[0] / small[0],
        "ratio",
        MOST_SCALING,
        f"time of a sampled client, {LARGE[1]} of {LARGE[0]} ({1e3 * large[0]:.2f} ms) over "
        f"{SMALL[1]} of {SMALL[0]} ({1e3 * small[0]:.2f} ms); {said}",
        lower_is_better=True,
    )
    yield Figure(
        "server_s_per_client",
        large[1],
        "s",
        setting=f"the server's part of it, {LARGE[1]} of {LARGE[0]}; of {SMALL[1]} of {SMALL[0]} "
        f"{1e3 * small[1]:.2f} ms; {said}",
        lower_is_better=True,
    )


def _growth(method: str) -> Figure:
    levels: dict[int, int] = {}

    def watch(record: RoundRecord) -> None:
        if record.round in (EARLY, LONG):
            gc.collect()
            levels[record.round] = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        options = _options(20, 10, LONG)
        simulate(_task(), method, backend="inline", on_round=watch, **options)
    finally:
        tracemalloc.stop()
    early, late = levels[EARLY], levels[LONG]
    return Figure(
        "server_memory_over_rounds",
        late / early,
        "ratio",
        MOST_GROWTH,
        f"what Python holds after {LONG} rounds ({late / 2**20:.2f} MiB) over that after {EARLY} "
        f"({early / 2**20:.2f} MiB): {(late - early) / (LONG - EARLY):.0f} bytes a round, the "
        f"journal and the history among them; {method}, 10 of 20 clients, inline, clients' states "
        "included",
        lower_is_better=True,
    )


def _held(method: str) -> Figure:
    few, many = 200, 600

    def held(clients: int) -> int:
        tracemalloc.start()
        found: list[int] = []

        def watch(record: RoundRecord) -> None:
            gc.collect()
            ours = [
                tracemalloc.Filter(True, f"*/sfl_flower/{room}/*") for room in ("server", "wire")
            ]
            kept = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
            found.append(sum(each.size for each in kept))

        try:
            options = _options(clients, 10, 1)
            simulate(_task(), method, backend="inline", on_round=watch, **options)
        finally:
            tracemalloc.stop()
        return found[-1]

    return Figure(
        "server_bytes_per_client",
        (held(many) - held(few)) / (many - few),
        "B",
        setting=f"what the server keeps of a client that has joined: Python's allocations by the "
        f"package's server and messages with {many} clients less those with {few}, over the "
        f"difference; {method}, inline",
        lower_is_better=True,
    )


def _waves(clients: int) -> Figure:
    took = {wave: _on_ray(clients, wave) for wave in (clients, 64)}
    whole, waves = took.values()
    return Figure(
        "wave_time_on_ray",
        waves / whole,
        "ratio",
        1.0,
        f"a round of the frozen client, {clients} of {clients}, Flower's simulation, in waves of "
        f"64 ({1e3 * waves / clients:.2f} ms a client) over all at once "
        f"({1e3 * whole / clients:.2f} ms): medians of 4 rounds, wall time",
        lower_is_better=True,
    )


def _on_ray(clients: int, wave: int) -> float:
    ends: list[float] = []
    simulate(
        _task(),
        "frozen",
        on_round=lambda record: ends.append(perf_counter()),
        **_options(clients, clients, METERED + 4, wave=wave),
    )
    return median(b - a for a, b in pairwise(ends[METERED:]))
