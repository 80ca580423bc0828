"""Replaying a journal, against moving the same parameters over a slow link."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import torch

from benchmarks.figure import Figure
from sfl_flower.zo import (
    Entry,
    Journal,
    JournalHeader,
    OptimizerSpec,
    Replica,
    Tail,
    params_digest,
    run_key,
)

__all__ = ["run"]

SIZE = 683_072  # the ResNet-18 client half, to layer2
ENTRIES, PROBES = 100, 4
LINK_BITS_PER_S = 10e6
REPEATS = 9
_TARGETS = {"sgd": 20.0, "momentum": 12.0, "adamw": None}


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield, per optimiser, the link's seconds over the replay's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, target in _TARGETS.items():
            yield _figure(name, target)
    finally:
        torch.set_num_threads(threads)


def _figure(optimizer: str, target: float | None) -> Figure:
    link = 4 * SIZE * 8 / LINK_BITS_PER_S
    best = _best_seconds(optimizer)
    setting = (
        f"a client replays a received tail of {ENTRIES} rounds, P = {PROBES} shared Rademacher "
        f"directions, {SIZE} float32, {optimizer}; decoding, checking the chain and drawing the "
        f"words included; seconds by the clock, one thread, best of "
        f"{REPEATS}: {best:.3f} s; against moving these "
        f"parameters once, 4 bytes each, at 10 Mbit/s ({link:.2f} s, computed)"
    )
    return Figure(f"replay_vs_link_{optimizer}", link / best, "ratio", target, setting)


def _best_seconds(optimizer: str) -> float:
    theta = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    header = JournalHeader(
        run_key("benchmark", "replay"),
        bytes(32),
        params_digest(theta),
        optimizer=OptimizerSpec(optimizer),
    )
    journal = Journal(header)
    values = np.random.default_rng(0).normal(0.0, 1e-3, (ENTRIES, 1, 1, PROBES))
    for round_ in range(ENTRIES):
        journal.append(Entry(round_, 0.05, (0,), 1, PROBES, values[round_]))
    data, seconds = journal.tail(0) or b"", []
    for _ in range(REPEATS):
        replica = Replica.initial(theta, header, [(SIZE,)])
        start = perf_counter()
        replica.replay_tail(Tail.decode(data))
        seconds.append(perf_counter() - start)
    return min(seconds)
