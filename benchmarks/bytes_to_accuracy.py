"""Bytes until SplitFed V2's accuracy less one point on Fashion-MNIST, all of them, both ways.

The problem, the clients and the rates are those of `learning` and of `cut_bytes`.  The accuracy to
reach is SplitFed V2's after its last round, the mean over seeds, less one point; what counts are
the bytes, a mean over seeds too, at the first evaluation whose mean accuracy reaches it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import learning
from benchmarks.cut_bytes import PAIRS, PLACES, coded
from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, result_of, run_jobs
from sfl_flower.options import check_choice

__all__ = ["METHODS", "add_arguments", "run"]

LESS = 0.01
TARGET = 1 / 12
SERVER_LR = 0.05
METHODS = ("heron", "ho_sfl")
HEADS: Mapping[str, str] = {
    "int8": "int8",
    "int4_deflate": "int4+deflate",
    "uniform": "uniform:1+deflate",
}
"""How HERON-SFL's head comes down, by the names of `PAIRS` that it has."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    for name, known in (("methods", METHODS), ("pairs", tuple(PAIRS))):
        said = f"with commas between, of: {', '.join(known)}"
        parser.add_argument(f"--bytes_to_accuracy-{name}", default=",".join(known), help=said)
    parser.add_argument(
        "--bytes_to_accuracy-rounds", type=int, default=2000, help="rounds of SplitFed V2"
    )
    parser.add_argument(
        "--bytes_to_accuracy-forward-rounds",
        type=int,
        help="rounds of forward-only clients, over which their rates fall; as many by default",
    )
    parser.add_argument(
        "--bytes_to_accuracy-evaluations", type=int, default=100, help="evaluations of each run"
    )
    parser.add_argument("--bytes_to_accuracy-seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument(
        "--bytes_to_accuracy-workers", type=int, default=2, help="runs side by side"
    )
    parser.add_argument(
        "--bytes_to_accuracy-out", type=Path, help="file of results: runs in it are not run again"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield of each method and encoding its bytes over SplitFed V2's, and of each its fewest."""
    methods = args.bytes_to_accuracy_methods.split(",")
    pairs = args.bytes_to_accuracy_pairs.split(",")
    for method in methods:
        check_choice("--bytes_to_accuracy-methods", method, METHODS)
    for pair in pairs:
        check_choice("--bytes_to_accuracy-pairs", pair, PAIRS)
    seeds = range(args.bytes_to_accuracy_seeds)
    rounds = args.bytes_to_accuracy_rounds
    forward = args.bytes_to_accuracy_forward_rounds or rounds
    first = [first_order(seed, rounds, args.bytes_to_accuracy_evaluations) for seed in seeds]
    rows = {
        (method, pair): [
            forward_only(method, pair, seed, forward, args.bytes_to_accuracy_evaluations)
            for seed in seeds
        ]
        for method in methods
        for pair in pairs
        if method == "ho_sfl" or pair in HEADS
    }
    every = [*first, *(job for jobs in rows.values() for job in jobs)]
    done = run_jobs(every, args.bytes_to_accuracy_workers, args.bytes_to_accuracy_out, train)
    own = [done[job.key()] for job in first]
    wanted = mean(_last(found) for found in own) - LESS
    whole = spent_until(own, wanted)
    ratios: dict[str, dict[str, float]] = {method: {} for method in methods}
    for (method, pair), jobs in rows.items():
        found = [done[job.key()] for job in jobs]
        spent = spent_until(found, wanted)
        ratios[method][pair] = spent / whole
        ends = ", ".join(f"{_last(each):.4f}" for each in found)
        yield Figure(
            f"bytes_to_accuracy_{method}_{pair}",
            spent / whole,
            "ratio",
            None,
            f"{_said(jobs[0])}, {forward} rounds: {_megabytes(spent)} to an accuracy of "
            f"{wanted:.4f}, SplitFed V2 {_megabytes(whole)} of its {rounds} rounds; accuracy "
            f"after the last round {ends}, SplitFed V2 "
            f"{', '.join(f'{_last(each):.4f}' for each in own)}",
            lower_is_better=True,
        )
    for method in methods:
        best = min(ratios[method], key=ratios[method].__getitem__)
        yield Figure(
            f"bytes_to_accuracy_{method}",
            ratios[method][best],
            "ratio",
            TARGET,
            f"the fewest of {', '.join(ratios[method])}: {best}",
            lower_is_better=True,
        )


def first_order(seed: int, rounds: int, evaluations: int) -> Job:
    """Return a run of SplitFed V2 at its rates of `learning`."""
    plain = learning.job("first_order", SERVER_LR, seed, rounds)
    return _evaluated(plain, rounds, evaluations)


def forward_only(method: str, pair: str, seed: int, rounds: int, evaluations: int) -> Job:
    """Return a run of HO-SFL or HERON-SFL in a pair of encodings."""
    if method == "ho_sfl":
        plain = coded(PLACES["fashion"], PAIRS[pair], seed, rounds)
        return _evaluated(plain, rounds, evaluations)
    plain = learning.job("heron", SERVER_LR, seed, rounds)
    ways = {"smashed": PAIRS[pair]["smashed"], "downlink": "auto", "head_downlink": HEADS[pair]}
    return _evaluated(plain, rounds, evaluations, **ways)


def _evaluated(plain: Job, rounds: int, evaluations: int, **more: Any) -> Job:
    every = max(1, rounds // evaluations)
    return Job(plain.task, plain.method, {**plain.options, **more, "eval_every": every})


def train(job: Job) -> Metrics:
    """Return of each round that was evaluated the accuracy, and all bytes until then."""
    found: Metrics = {}
    for record in result_of(job).history:
        if record.metrics:
            found[f"accuracy {record.round}"] = record.metrics["accuracy"]
            found[f"bytes {record.round}"] = float(record.bytes_up + record.bytes_down)
    return found


def spent_until(found: Sequence[Metrics], wanted: float) -> float:
    """Return the bytes of a run, a mean over seeds, when their mean accuracy is reached.

    Parameters
    ----------
    found : sequence of Metrics
        Of each seed, evaluated at the same rounds.
    wanted : float
        The accuracy; infinity is returned where no evaluation reaches it.
    """
    for number in _rounds(found[0]):
        if mean(each[f"accuracy {number}"] for each in found) >= wanted:
            return mean(each[f"bytes {number}"] for each in found)
    return math.inf


def _last(found: Metrics) -> float:
    return found[f"accuracy {_rounds(found)[-1]}"]


def _rounds(found: Metrics) -> list[int]:
    return sorted(int(name.split()[1]) for name in found if name.startswith("accuracy"))


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if math.isfinite(count) else "not at all"


def _said(job: Job) -> str:
    names = ("smashed", "gradients", "temporal", "downlink", "head_downlink")
    told = [f"{name}={job.options[name]}" for name in names if name in job.options]
    return f"{job.method} ({', '.join(told)})"
