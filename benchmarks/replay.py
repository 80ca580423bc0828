"""Replaying a journal, against moving the same parameters over a slow link; and walks of others.

HERON-SFL's clients may be sent the scalars of all walks of a round in place of the weights
(`downlink=scalars`): what following them costs stands beside the forwards of a client's own step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import torch

from benchmarks.figure import Figure
from sfl_flower.tasks import load_task
from sfl_flower.zo import (
    Entry,
    Journal,
    JournalHeader,
    OptimizerSpec,
    Replica,
    StepRule,
    Tail,
    client_stream,
    params_digest,
    run_key,
)
from sfl_flower.zo.walks import LocalWalk, RoundOfWalks, Walking

__all__ = ["run"]

SIZE = 683_072  # the ResNet-18 client half, to layer2
ENTRIES, PROBES = 100, 4
LINK_BITS_PER_S = 10e6
REPEATS = 9
WALKS, WALK_PROBES, BATCH = 10, 32, 32
_TARGETS = {"sgd": 20.0, "momentum": 12.0, "adamw": None}


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield, per optimiser, the link's seconds over the replay's, and what walks of others cost."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, target in _TARGETS.items():
            yield _figure(name, target)
        yield _walks()
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


def _walks() -> Figure:
    half = load_task("synthetic").build(0).client.train()
    theta = torch.cat([p.detach().reshape(-1) for p in half.parameters()])
    shapes = tuple(tuple(p.shape) for p in half.parameters())
    walking = Walking("rademacher", shapes, OptimizerSpec("sgd"), StepRule(1e-3), WALK_PROBES)
    values = np.random.default_rng(0).normal(0.0, 1e-3, (WALKS, 1, WALK_PROBES))
    taken = np.ones(1, np.uint8)
    data = RoundOfWalks(
        1,
        0.05,
        tuple(
            LocalWalk(run_key("walk", n), client_stream(n), 1.0, values[n].astype("f4"), taken)
            for n in range(WALKS)
        ),
    ).encode()
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own, others = [], []
    for _ in range(REPEATS):
        start = perf_counter()
        walking.mean(theta, RoundOfWalks.decode(data))
        others.append(perf_counter() - start)
        start = perf_counter()
        with torch.no_grad():
            for _ in range(WALK_PROBES + 1):
                half(x)
        own.append(perf_counter() - start)
    setting = (
        f"a client follows the walks of {WALKS} clients, a step of P = {WALK_PROBES} Rademacher "
        f"directions each, {theta.numel()} float32, sgd, in {len(data)} bytes: {min(others):.3f} "
        f"s; over the {WALK_PROBES + 1} forwards of a step of its own, the ResNet-18 half to "
        f"layer2 (ImageNet stem) on {BATCH} images of 3x32x32, nothing perturbed: {min(own):.3f} "
        f"s; one thread, best of {REPEATS} in turn"
    )
    ratio = min(others) / min(own)
    return Figure("walks_vs_own_step", ratio, "ratio", None, setting, lower_is_better=True)


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
