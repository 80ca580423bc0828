"""What attackers cost with the mean, and with the best robust aggregator (`benchmarks.attackers`).

One client in five lies, in every round, within what the server believes of a reply.  The task is
the digits, so that an attack takes seconds, and no gradient of HO-SFL is clipped to a norm, which
bounds some attacks already.  What wrong labels and smashed data teach the server half is beyond an
aggregator, unless the server half steps once a round, by what it makes of the clients' gradients.
Clients hold different shares of the classes, so a liar's data are missed as well: beside the honest
run stands one in which the liars never answer, which is what finding all of them comes to.  In beds
that end in ``even`` clients hold like data, and with a liar nothing is missed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.attackers import ATTACKS, LEFT_OUT, attacked
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
EVEN: Mapping[str, Any] = {"partition": "iid"}
"""Clients whose data are alike, so that a liar's are not missed."""
BEDS: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "ho_sfl": ("ho_sfl", {"directions": "shared", "clip_norm": 0}, tuple(ATTACKS)),
    "ho_sfl_round": (
        "ho_sfl",
        {"directions": "shared", "clip_norm": 0, "server_steps": "round", "server_lr": 0.2},
        ("labels", "constant_z"),
    ),
    "heron": ("heron", {}, tuple(ATTACKS)),
    "ho_sfl_even": (
        "ho_sfl",
        {"directions": "shared", "clip_norm": 0, **EVEN},
        tuple(ATTACKS),
    ),
    "ho_sfl_round_even": (
        "ho_sfl",
        {"directions": "shared", "clip_norm": 0, "server_steps": "round", "server_lr": 0.2, **EVEN},
        ("labels", "constant_z"),
    ),
    "heron_even": ("heron", EVEN, tuple(ATTACKS)),
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
    """Return one run: of a bed, with an attack, `HONEST` or `LEFT_OUT`."""
    method, settings, _ = BEDS[bed]
    timed = {"rounds": rounds, "eval_every": max(1, rounds // 20), "seed": seed}
    chosen = {"attack": attack, "aggregator": aggregator, "clients": CLIENTS}
    return Job("digits", method, {**settings, **timed, **chosen})


def train(job: Job) -> Metrics:
    """Return the accuracy of a run, the mean over its last evaluations, and what was found."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # some replies are refused
    options = dict(job.options)
    attack = options.pop("attack")
    method = job.method if attack == HONEST else attacked(job.method, attack, LIARS)
    result = simulate(job.task, method, backend="inline", **options)
    evaluated = [record.metrics["accuracy"] for record in result.history if record.metrics]
    liars = [result.summary.clients.get(str(each), {}) for each in LIARS]
    found = sum(max(each.values(), default=0) for each in liars) / len(LIARS)
    outlying = {
        k: result.summary.clients.get(str(k), {}).get("outlying", 0) for k in range(CLIENTS)
    }
    return {
        "accuracy": mean(evaluated[-LAST:]),
        "found": float(found),
        "outlying_liar": float(min(outlying[each] for each in LIARS)),
        "outlying_honest": float(max(outlying[k] for k in outlying if k not in LIARS)),
    }


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
    gaps: dict[str, float] = {}
    for bed in asked["beds"]:
        attacks = [attack for attack in BEDS[bed][2] if attack in asked["attacks"]]
        found = _trained(bed, attacks, asked["with"], args)
        for attack in attacks:
            name = f"{bed}_{attack}"
            lost, gap, said = _losses(found, attack, asked["with"])
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


def _trained(
    bed: str, attacks: list[str], robust: list[str], args: argparse.Namespace
) -> dict[tuple[str, str], list[Metrics]]:
    """Return what the runs of a bed brought, a seed each, by attack and aggregator."""
    runs = [(HONEST, MEAN), (LEFT_OUT, MEAN)]
    runs += [(attack, aggregator) for attack in attacks for aggregator in (MEAN, *robust)]
    seeds = range(args.trust_robust_seeds)
    jobs = {run: [job(bed, *run, seed, args.trust_robust_rounds) for seed in seeds] for run in runs}
    all_jobs = [each for some in jobs.values() for each in some]
    done = run_jobs(all_jobs, args.trust_robust_workers, args.trust_robust_out, train)
    return {run: [done[each.key()] for each in some] for run, some in jobs.items()}


def _losses(
    found: Mapping[tuple[str, str], list[Metrics]], attack: str, robust: list[str]
) -> tuple[float, float, str]:
    """Return the points that the mean and the best robust aggregator lose, and all in words."""

    def points(attack: str, aggregator: str) -> float:
        return 100 * mean(each["accuracy"] for each in found[attack, aggregator])

    honest, left_out, with_mean = (points(run, MEAN) for run in (HONEST, LEFT_OUT, attack))
    reached = {aggregator: points(attack, aggregator) for aggregator in robust}
    best = max(reached, key=lambda each: reached[each])
    told = ", ".join(
        f"{each} {reached[each]:.1f} ({_told(found[attack, each])})" for each in robust
    )
    words = (
        f"{len(LIARS)} of {CLIENTS} lie; accuracy {honest:.1f} honest, {left_out:.1f} without the "
        f"liars, mean {with_mean:.1f}, {told}"
    )
    return honest - with_mean, honest - reached[best], f"{words}; best {best}"


def _told(found: list[Metrics]) -> str:
    """Return in how many rounds something was found of liars, and who was outlying how often."""
    told = f"told of the liars in {mean(each['found'] for each in found):.0f} rounds"
    if any("outlying_liar" not in each for each in found):  # results of an older form
        return told
    liars = min(each["outlying_liar"] for each in found)
    honest = max(each["outlying_honest"] for each in found)
    said = f"outlying they were in {liars:.0f} or more, honest ones in {honest:.0f} or fewer"
    return f"{told}; {said}"
