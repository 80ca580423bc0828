"""What HO-SFL learns pipelined, a step later and in half the exchanges, beside its plain form.

The bed and its rates are those of `cut_bytes`; within a seed nothing differs but `pipeline`.  The
frozen client is there because a difference is worth what it is beside the margin over it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from benchmarks.cut_bytes import PLACES
from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs, summary_of
from benchmarks.learn import job
from benchmarks.learn_beds import BEDS
from sfl_flower.options import check_choice

__all__ = ["add_arguments", "run"]

FROZEN, PLAIN, PIPELINED = "frozen", "plain", "pipelined"


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--pipeline-place", default="fashion", help=f"of: {', '.join(PLACES)}")
    parser.add_argument("--pipeline-rounds", type=int, help="rounds of each run")
    parser.add_argument("--pipeline-seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--pipeline-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--pipeline-out", type=Path, help="file of results: runs in it are not run again"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield what pipelining changes of accuracy, and of exchanges."""
    check_choice("--pipeline-place", args.pipeline_place, PLACES)
    place, seeds = PLACES[args.pipeline_place], range(args.pipeline_seeds)
    rounds = args.pipeline_rounds or place.rounds
    bed = BEDS[place.bed]
    jobs: dict[tuple[str, int], Job] = {}
    for seed in seeds:
        plain = job(bed, place.row, place.rates, seed, rounds)
        server = {name: rate for name, rate in place.rates.items() if name != "client_lr"}
        jobs[FROZEN, seed] = job(bed, FROZEN, server, seed, rounds)
        jobs[PLAIN, seed] = plain
        piped = {**plain.options, "pipeline": True}
        jobs[PIPELINED, seed] = Job(plain.task, plain.method, piped)
    done = run_jobs(jobs.values(), args.pipeline_workers, args.pipeline_out, train)
    found = {at: done[each.key()] for at, each in jobs.items()}
    accuracies = {
        form: [found[form, seed]["accuracy"] for seed in seeds]
        for form in (FROZEN, PLAIN, PIPELINED)
    }
    changes = [b - a for a, b in zip(accuracies[PLAIN], accuracies[PIPELINED], strict=True)]
    listed = "; ".join(
        f"{form} {', '.join(f'{value:.4f}' for value in values)}"
        for form, values in accuracies.items()
    )
    spread = stdev(changes) if len(changes) > 1 else 0.0
    yield Figure(
        f"pipeline_accuracy_{args.pipeline_place}",
        mean(changes),
        "share",
        None,
        f"{place.bed}, {place.row}, {rounds} rounds: change of the test accuracy by pipelining, "
        f"standard deviation over seeds {spread:.4f}; {listed}",
    )
    exchanges = [mean(found[form, s]["exchanges"] for s in seeds) for form in (PLAIN, PIPELINED)]
    yield Figure(
        f"pipeline_exchanges_{args.pipeline_place}",
        exchanges[0] / exchanges[1],
        "ratio",
        None,
        f"exchanges of a plain run over those of a pipelined one: {exchanges[0]:.0f} and "
        f"{exchanges[1]:.0f}",
    )


def train(job: Job) -> Metrics:
    """Return the results of the whole model, and the number of exchanges."""
    summary = summary_of(job)
    return {**summary.metrics, "exchanges": float(summary.exchanges)}
