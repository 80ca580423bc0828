"""What attackers cost with the mean, and with the best robust aggregator (`benchmarks.attackers`).

One client in five lies, in every round, within what the server believes of a reply.  The task is
the digits, so that an attack takes seconds, and no gradient of HO-SFL is clipped to a norm, which
bounds some attacks already.  What wrong labels and smashed data teach the server half is beyond an
aggregator, unless the server half steps once a round, by what it makes of the clients' gradients.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.attackers import ATTACKS, attacked
from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from sfl_flower import simulate
from sfl_flower.options import check_choice

__all__ = ["add_arguments", "figures"]

LAST = 3
"""Evaluations at the end of a run that are averaged, of twenty."""
CLIENTS, LIARS = 5, (4,)
"""Clients of a run, and the partitions of those that lie: 20 %."""
MEAN, HONEST = "mean", "honest"
ROBUST = ("median", "trimmed:0.2", "multikrum:1", "nnm:1+median", "clip:1")
LOST, KEPT = 10.0, 2.0
"""Points of accuracy that the mean should lose at least, and the best robust aggregator at most."""
BEDS: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "ho_sfl": ("ho_sfl", {"directions": "shared", "clip_norm": 0}, tuple(ATTACKS)),
    "ho_sfl_round": (
        "ho_sfl",
        {"directions": "shared", "clip_norm": 0, "server_steps": "round", "server_lr": 0.2},
        ("labels", "constant_z"),
    ),
    "heron": ("heron", {}, tuple(ATTACKS)),
}
"""By name: a method, its settings, and the attacks that it meets."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    given = parser.add_argument
    given("--trust-robust-rounds", type=int, default=40, help="rounds of each run")
    given("--trust-robust-seeds", type=int, default=1, help="seeds 0, 1, … of each run")
    given("--trust-robust-workers", type=int, default=1, help="runs side by side")
    for name, known in (("beds", tuple(BEDS)), ("attacks", tuple(ATTACKS)), ("with", ROBUST)):
        said = f"what to run, with commas between, of: {', '.join(known)}"
        given(f"--trust-robust-{name}", default=",".join(known), help=said)
    given("--trust-robust-out", type=Path, help="file of results: runs in it are not run again")


def job(bed: str, attack: str, aggregator: str, seed: int, rounds: int) -> Job:
    """Return one run: of a bed, with an attack or `HONEST`."""
    method, settings, _ = BEDS[bed]
    timed = {"rounds": rounds, "eval_every": max(1, rounds // 20), "seed": seed}
    chosen = {"attack": attack, "aggregator": aggregator, "clients": CLIENTS}
    return Job("digits", method, {**settings, **timed, **chosen})


def train(job: Job) -> Metrics:
    """Return the accuracy of a run, the mean over its last evaluations."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # some replies are refused
    options = dict(job.options)
    attack = options.pop("attack")
    method = job.method if attack == HONEST else attacked(job.method, attack, LIARS)
    result = simulate(job.task, method, backend="inline", **options)
    evaluated = [record.metrics["accuracy"] for record in result.history if record.metrics]
    liars = [result.summary.clients.get(str(each), {}) for each in LIARS]
    found = sum(max(each.values(), default=0) for each in liars) / len(LIARS)
    return {"accuracy": mean(evaluated[-LAST:]), "found": float(found)}


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield for each attack what the mean loses and what the best robust aggregator does.

    Raises
    ------
    ConfigError
        If a part that is asked for is none.
    """
    asked = {
        name: vars(args)[f"trust_robust_{name}"].split(",") for name in ("beds", "attacks", "with")
    }
    for name, known in (("beds", BEDS), ("attacks", ATTACKS), ("with", ROBUST)):
        for part in asked[name]:
            check_choice(f"--trust-robust-{name}", part, known)
    seeds = range(args.trust_robust_seeds)

    def accuracy(bed: str, attack: str, aggregator: str) -> tuple[float, float]:
        """Return accuracy in points, and the rounds in which something was found of the liars."""
        jobs = [job(bed, attack, aggregator, seed, args.trust_robust_rounds) for seed in seeds]
        done = run_jobs(jobs, args.trust_robust_workers, args.trust_robust_out, train)
        found = [done[each.key()] for each in jobs]
        return 100 * mean(m["accuracy"] for m in found), mean(m["found"] for m in found)

    gaps: dict[str, float] = {}
    for bed in asked["beds"]:
        honest = accuracy(bed, HONEST, MEAN)[0]
        for attack in [attack for attack in BEDS[bed][2] if attack in asked["attacks"]]:
            name = f"{bed}_{attack}"
            lost, gap, said = _losses(honest, asked["with"], partial(accuracy, bed, attack))
            said = f"{ATTACKS[attack][0]}; {args.trust_robust_rounds} rounds, {said}"
            yield Figure(f"mean_loses_{name}", lost, "points", LOST, said)
            if lost >= LOST:
                gaps[name] = gap
                yield Figure(f"robust_gap_{name}", gap, "points", KEPT, said, True)
            else:
                said = f"the mean loses {lost:.1f} points, so there is little to mend: {said}"
                yield Figure(f"robust_gap_{name}", gap, "points", None, said, True)
    if gaps:
        worst = max(gaps, key=gaps.__getitem__)
        said = f"the largest where the mean loses {LOST:g} or more, {worst}; of {', '.join(gaps)}"
        yield Figure("robust_gap", gaps[worst], "points", KEPT, said, True)


def _losses(
    honest: float, robust: list[str], accuracy: Callable[[str], tuple[float, float]]
) -> tuple[float, float, str]:
    """Return the points that the mean and the best robust aggregator lose, and all in words."""
    with_mean = accuracy(MEAN)[0]
    found = {aggregator: accuracy(aggregator) for aggregator in robust}
    best = max(found, key=lambda each: found[each][0])
    said = ", ".join(
        f"{each} {points:.1f} (told of the liars in {rounds:.0f} rounds)"
        for each, (points, rounds) in found.items()
    )
    words = (
        f"{len(LIARS)} of {CLIENTS} lie; accuracy {honest:.1f} honest, mean {with_mean:.1f}, {said}"
    )
    return honest - with_mean, honest - found[best][0], f"{words}; best {best}"
