"""What 30 % of replies lost, late, doubled or NaN cost: Fashion-MNIST, beside the clean run.

The problem, the clients and the rates are those of `bytes_to_accuracy`; within a seed nothing
differs but the faults.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks import learning
from benchmarks.cut_bytes import PLACES
from benchmarks.faulty_grid import FAULTS, FaultyGrid
from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from benchmarks.learn import job as bed_job
from benchmarks.learn_beds import BEDS
from benchmarks.trial import client_app, executed
from sfl_flower.options import check_choice
from sfl_flower.run.run import Plan
from sfl_flower.tasks import load_task

__all__ = ["METHODS", "add_arguments", "figures"]

METHODS = ("ho_sfl", "heron")
SHARE = 0.3
POINT = 0.01
SERVER_LR = 0.05
TIMEOUT = 0.05
"""Seconds that a reply is waited for: in one process it is there at once or never comes."""
LAST = 5
"""Evaluations at the end whose mean is a run's accuracy: it jumps from one to the next."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    said = f"which, with commas between, of: {', '.join(METHODS)} (default both)"
    parser.add_argument("--trust-faults-methods", default=",".join(METHODS), help=said)
    parser.add_argument("--trust-faults-rounds", type=int, default=1000, help="rounds of each run")
    parser.add_argument("--trust-faults-seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--trust-faults-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--trust-faults-out", type=Path, help="file of results: runs in it are not run again"
    )


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield for each method the accuracy that faults cost.

    Raises
    ------
    ConfigError
        If a method is none of `METHODS`.
    """
    methods, seeds = args.trust_faults_methods.split(","), range(args.trust_faults_seeds)
    for method in methods:
        check_choice("--trust-faults-methods", method, METHODS)
    rounds = args.trust_faults_rounds
    jobs = {
        (method, share, seed): job(method, seed, rounds, share)
        for method in methods
        for share in (0.0, SHARE)
        for seed in seeds
    }
    done = run_jobs(jobs.values(), args.trust_faults_workers, args.trust_faults_out, train)
    for method in methods:
        clean, faulty = (
            [done[jobs[method, share, seed].key()] for seed in seeds] for share in (0.0, SHARE)
        )
        lost = [a["accuracy"] - b["accuracy"] for a, b in zip(clean, faulty, strict=True)]
        spread = stdev(lost) if len(lost) > 1 else 0.0
        each = ", ".join(
            f"{a['accuracy']:.4f} and {b['accuracy']:.4f}"
            for a, b in zip(clean, faulty, strict=True)
        )
        struck = ", ".join(f"{kind} {mean(m[kind] for m in faulty):.0f}" for kind in FAULTS)
        yield Figure(
            f"loss_under_faults_{method}",
            round(mean(lost), 9),  # accuracies are whole numbers of samples
            "share",
            POINT,
            f"Fashion-MNIST, {rounds} rounds, {SHARE:g} of replies struck ({struck} of "
            f"{mean(m['replies'] for m in faulty):.0f}); accuracy over the last {LAST} evaluations "
            f"clean and with faults, by seed: {each}; standard deviation {spread:.4f}",
            lower_is_better=True,
        )


def job(method: str, seed: int, rounds: int, share: float) -> Job:
    """Return a run of a method with so many of its replies struck."""
    if method == "ho_sfl":
        place = PLACES["fashion"]
        plain = bed_job(BEDS[place.bed], place.row, place.rates, seed, rounds)
    else:
        plain = learning.job(method, SERVER_LR, seed, rounds)
    every = {"eval_every": max(1, rounds // 20), "share": share}
    return Job(plain.task, plain.method, {**plain.options, **every})


def train(job: Job) -> Metrics:
    """Return the accuracy at the end, and how many replies were struck by what."""
    torch.set_num_threads(1)
    options = dict(job.options)
    share = options.pop("share")
    own = {key[5:]: options.pop(key) for key in job.options if key.startswith("task.")}
    task = load_task(job.task, **own)
    given = {**options, "method": job.method, "task": job.task}
    plan = Plan.read({**given, "timeout": TIMEOUT if share else 60.0})
    grid = FaultyGrid(client_app(task, plan), plan.config.clients, share, plan.config.seed)
    result = executed(grid, task, plan)
    last = [record.metrics["accuracy"] for record in result.history if record.metrics][-LAST:]
    struck = {kind: float(grid.struck[kind]) for kind in (*FAULTS, "replies")}
    return {"accuracy": mean(last), **struck}
