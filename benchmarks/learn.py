"""What forward-only clients learn with at most five forwards a sample, on Fashion-MNIST.

HO-SFL on all client weights and in a subspace of them, between first order, on all weights and on
the same trained ones, and two controls: the frozen client, whose server takes as many steps, and
clients that walk at random, whose steps are as long and tell nothing.  Every row has its own best
client rate, chosen with seed 0 on training images that are held back.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import learning
from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs

__all__ = ["add_arguments", "run"]

SHARED: Mapping[str, Any] = {**learning.SHARED, "server_lr": 0.05}
FORWARDS: Mapping[str, Any] = {"client_lr_schedule": "cosine", "client_lr_warmup": 0.05}
BACKPROP: Mapping[str, Any] = {"client_momentum": 0.9, "client_state": "kept"}
FEW: Mapping[str, Any] = {"task.trained": "subspace:16:conv2"}
APART: Mapping[str, Any] = {"scalars": "channel"}
WALK: Mapping[str, Any] = {"walk": True}


@dataclass(frozen=True)
class Row:
    """A method and its settings, and the client rates that are tried."""

    method: str
    settings: Mapping[str, Any]
    rates: tuple[float, ...] = ()


ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", {}),
    "all_p4": Row("ho_sfl", {**FORWARDS, "probes": 4}, (0.01, 0.02, 0.06)),
    "all_p4_walk": Row("ho_sfl", {**FORWARDS, "probes": 4, **WALK}, (0.01, 0.02, 0.06)),
    "subspace_p4": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 4}, (0.05, 0.1, 0.2)),
    "subspace_p4_walk": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 4, **WALK}, (0.05, 0.1, 0.2)),
    "subspace_p1": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 1}, (0.025, 0.05, 0.1)),
    "subspace_p1_walk": Row("ho_sfl", {**FORWARDS, **FEW, "probes": 1, **WALK}, (0.025, 0.05, 0.1)),
    "channel_p4": Row("ho_sfl", {**FORWARDS, **FEW, **APART, "probes": 4}, (0.2, 0.5, 1.0)),
    "channel_p1": Row("ho_sfl", {**FORWARDS, **FEW, **APART, "probes": 1}, (0.1, 0.2, 0.5)),
    "channel_p1_walk": Row(
        "ho_sfl", {**FORWARDS, **FEW, **APART, "probes": 1, **WALK}, (0.1, 0.2, 0.5)
    ),
    "first_order": Row("splitfed_v2", BACKPROP, (0.05, 0.1, 0.2)),
    "first_order_same": Row("splitfed_v2", {**BACKPROP, **FEW}, (0.02, 0.05, 0.1)),
}
GAPS: Mapping[str, tuple[str, str, str, float | None]] = {
    "fashion_gap_p4": ("channel_p4", "frozen", "first_order", 0.8),
    "fashion_gap_p4_same": ("channel_p4", "frozen", "first_order_same", 0.9),
    "fashion_gap_p4_whole": ("subspace_p4", "frozen", "first_order", None),
    "fashion_gap_p4_all": ("all_p4", "frozen", "first_order", None),
    "fashion_gap_p1": ("channel_p1", "frozen", "first_order", 0.7),
    "fashion_gap_p1_same": ("channel_p1", "frozen", "first_order_same", None),
    "fashion_gap_p1_whole": ("subspace_p1", "frozen", "first_order", None),
    "fashion_gap_walk": ("subspace_p1_walk", "frozen", "first_order", None),
    "fashion_gap_walk_channel": ("channel_p1_walk", "frozen", "first_order", None),
    "fashion_gap_walk_all": ("all_p4_walk", "frozen", "first_order", None),
    "fashion_learned_p4": ("channel_p4", "subspace_p1_walk", "first_order_same", None),
    "fashion_learned_p4_whole": ("subspace_p4", "subspace_p1_walk", "first_order_same", None),
    "fashion_learned_p4_all": ("all_p4", "all_p4_walk", "first_order", None),
    "fashion_learned_p1": ("channel_p1", "subspace_p1_walk", "first_order_same", None),
    "fashion_learned_p1_whole": ("subspace_p1", "subspace_p1_walk", "first_order_same", None),
}
"""Figure -> forward-only row, its control, the first order it is held against, the target if any.

``gap`` counts from the frozen client; ``learned`` from the walk of the same parameters that comes
farthest, to first order on these."""


def job(label: str, client_lr: float, seed: int, rounds: int) -> Job:
    """Return one run of a row."""
    row = ROWS[label]
    own = {**row.settings, "client_lr": client_lr} if row.rates else row.settings
    options = {"rounds": rounds, "eval_every": rounds, "seed": seed}
    return Job("fashion_mnist", row.method, {**SHARED, **own, **options})


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--learn-rounds", type=int, default=2000, help="rounds of each run")
    parser.add_argument("--learn-seeds", type=int, default=3, help="seeds 0, 1, … of each row")
    parser.add_argument("--learn-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--learn-out", type=Path, help="file of results: runs in it are not run again"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the accuracy of each row, and the shares of the gap that forward-only rows close."""
    rounds = args.learn_rounds

    def results(asked: list[Job]) -> list[Metrics]:
        done = run_jobs(asked, args.learn_workers, args.learn_out)
        return [done[each.key()] for each in asked]

    tried = [(label, rate) for label, row in ROWS.items() for rate in row.rates or (0.0,)]
    tuning = dict(zip(tried, results([job(*each, 0, rounds) for each in tried]), strict=True))
    best = {
        label: max(row.rates or (0.0,), key=lambda rate: tuning[label, rate]["validation_accuracy"])
        for label, row in ROWS.items()
    }
    asked = [(label, seed) for label in ROWS for seed in range(args.learn_seeds)]
    found = dict(
        zip(
            asked,
            results([job(label, best[label], seed, rounds) for label, seed in asked]),
            strict=True,
        )
    )
    accuracy: dict[str, float] = {}
    for label, row in ROWS.items():
        seeds = [found[label, seed]["accuracy"] for seed in range(args.learn_seeds)]
        accuracy[label] = mean(seeds)
        grid = ", ".join(
            f"{rate:g}: {tuning[label, rate]['validation_accuracy']:.4f}" for rate in row.rates
        )
        own = ", ".join(f"{key}={value}" for key, value in row.settings.items()) or "no settings"
        spread = stdev(seeds) if len(seeds) > 1 else 0.0
        yield Figure(
            f"accuracy_{label}",
            accuracy[label],
            "share",
            None,
            f"{row.method} ({own}), {args.learn_rounds} rounds, seeds "
            f"{', '.join(f'{value:.4f}' for value in seeds)}, standard deviation {spread:.4f}; "
            f"client rate {best[label]:g}, of seed 0 on held back images: {grid or 'none tried'}",
        )
    for name, (label, control, twin, target) in GAPS.items():
        low, high, value = accuracy[control], accuracy[twin], accuracy[label]
        yield Figure(
            name,
            (value - low) / (high - low),
            "ratio",
            target,
            f"({label} - {control}) / ({twin} - {control}) = "
            f"({value:.4f} - {low:.4f}) / ({high:.4f} - {low:.4f})",
        )
