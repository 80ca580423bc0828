"""What accuracy encodings of smashed data and cut gradients cost, and the bytes they save.

HO-SFL on beds of `learn_beds`, at the rates that were best there; nothing but the encodings differs
between the runs of a seed.  Bytes are those across the cut, labels included, as the ledger has
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs, summary_of
from benchmarks.learn import job
from benchmarks.learn_beds import BEDS
from sfl_flower.options import check_choice

__all__ = ["PAIRS", "PLACES", "add_arguments", "run"]

ACROSS = ("smashed", "gradients", "labels")
"""The ledger's categories of what crosses the cut."""


@dataclass(frozen=True)
class Place:
    """A row of a bed, at the rates that were best there.

    Attributes
    ----------
    bed, row : str
        Names in `BEDS`.
    rates : mapping of str to float
        Client rate, and the server's where the bed tries several.
    rounds : int
        Of each run.
    """

    bed: str
    row: str
    rates: Mapping[str, float]
    rounds: int


PLACES: Mapping[str, Place] = {
    "fashion": Place("fashion", "channel_p4", {"client_lr": 0.5}, 1000),
    "minilm": Place("minilm", "orthogonal", {"client_lr": 3.0, "server_lr": 0.003}, 48),
    "efficientnet": Place(
        "efficientnet", "channel_p4", {"client_lr": 16.0, "server_lr": 0.003}, 100
    ),
}
PLAIN: Mapping[str, Any] = {}
PAIRS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"smashed": "int8", "gradients": "int8"},
    "int4_deflate": {"smashed": "int4+deflate", "gradients": "int4+deflate"},
    "int4_deflate_topk": {"smashed": "int4+deflate", "gradients": "topk:0.25+int4+deflate"},
    "uniform": {"smashed": "uniform:0.5+deflate", "gradients": "uniform:1+deflate"},
    "uniform_coarse": {"smashed": "uniform:1+deflate", "gradients": "uniform:1.5+deflate"},
    "temporal": {
        "smashed": "uniform:0.5+deflate", "gradients": "uniform:1+deflate", "temporal": 0.2,
    },
    "temporal_coarse": {
        "smashed": "uniform:1+deflate", "gradients": "uniform:1.5+deflate", "temporal": 0.3,
    },
}  # fmt: skip
"""How smashed data and cut gradients travel, by what a figure's name ends with."""
TARGETS: Mapping[str, float] = {"int8": 3.9, "int4_deflate": 8.0, "uniform": 8.0, "temporal": 20.0}
"""Least ratio of bytes."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    for name, known in (("places", PLACES), ("pairs", PAIRS)):
        said = f"with commas between, of: {', '.join(known)}"
        parser.add_argument(f"--cut_bytes-{name}", default=",".join(known), help=said)
    parser.add_argument("--cut_bytes-rounds", type=int, help="rounds of each run")
    parser.add_argument("--cut_bytes-seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--cut_bytes-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--cut_bytes-out", type=Path, help="file of results: runs in it are not run again"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield of each place and pair the ratio of bytes, and what accuracy changes."""
    names, pairs = args.cut_bytes_places.split(","), args.cut_bytes_pairs.split(",")
    for name in names:
        check_choice("--cut_bytes-places", name, PLACES)
    for pair in pairs:
        check_choice("--cut_bytes-pairs", pair, PAIRS)
    for name in names:
        yield from _place(name, PLACES[name], pairs, args)


def _place(name: str, place: Place, pairs: list[str], args: argparse.Namespace) -> Iterator[Figure]:
    seeds, rounds = range(args.cut_bytes_seeds), args.cut_bytes_rounds or place.rounds
    jobs = {
        (pair, seed): coded(place, PAIRS.get(pair, PLAIN), seed, rounds)
        for pair in ("float32", *pairs)
        for seed in seeds
    }
    done = run_jobs(jobs.values(), args.cut_bytes_workers, args.cut_bytes_out, train)
    found = {at: done[each.key()] for at, each in jobs.items()}
    for pair in pairs:
        told = " ".join(f"{option}={value}" for option, value in PAIRS[pair].items())
        changes = [found[pair, s]["accuracy"] - found["float32", s]["accuracy"] for s in seeds]
        spread = stdev(changes) if len(changes) > 1 else 0.0
        listed = ", ".join(
            f"{found['float32', s]['accuracy']:.4f}: {found[pair, s]['accuracy']:.4f}"
            for s in seeds
        )
        across = [mean(found[kind, s]["cut_bytes"] for s in seeds) for kind in ("float32", pair)]
        yield Figure(
            f"cut_bytes_ratio_{name}_{pair}",
            across[0] / across[1],
            "ratio",
            TARGETS.get(pair),
            f"{place.bed}, {place.row}, {rounds} rounds, {told}: "
            f"{across[0] / 1e6:.1f} MB across the cut in float32, {across[1] / 1e6:.1f} MB so",
        )
        yield Figure(
            f"cut_bytes_accuracy_{name}_{pair}",
            mean(changes),
            "share",
            None,
            f"change of the test accuracy, standard deviation over seeds {spread:.4f}; of each "
            f"seed float32 and this: {listed}",
        )


def coded(place: Place, pair: Mapping[str, Any], seed: int, rounds: int) -> Job:
    """Return a run of a place in a pair of encodings."""
    plain = job(BEDS[place.bed], place.row, place.rates, seed, rounds)
    return Job(plain.task, plain.method, {**plain.options, **pair})


def train(job: Job) -> Metrics:
    """Return the results of the whole model, and the bytes across the cut."""
    summary = summary_of(job)
    across = sum(sum(summary.ledger[name].values()) for name in ACROSS)
    return {**summary.metrics, "cut_bytes": float(across)}
