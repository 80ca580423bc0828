"""What forward-only clients learn with at most five forwards a sample, on the beds of `learn_beds`.

HO-SFL between first order, on all client weights and on the same trained ones, and two controls:
the frozen client, whose server takes as many steps, and clients that walk at random, whose steps
are as long and tell nothing.  Every row has its own best rates, chosen with seed 0 on training
samples that are held back.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import features
from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from benchmarks.learn_beds import BEDS, Bed
from sfl_flower.methods import read_options
from sfl_flower.options import check_choice
from sfl_flower.run.micro_batch import client_peak
from sfl_flower.tasks import load_task

__all__ = ["add_arguments", "run"]


def job(bed: Bed, label: str, rates: Mapping[str, float], seed: int, rounds: int) -> Job:
    """Return one run of a row."""
    row = bed.rows[label]
    options = {"rounds": rounds, "eval_every": rounds, "seed": seed}
    return Job(bed.task, row.method, {**bed.shared, **row.settings, **rates, **options})


def counting_job(bed: Bed, label: str, rates: Mapping[str, float]) -> Job:
    """Return a run of a row that is long enough to count a client's operations, nothing kept."""
    row = bed.rows[label]
    own = {key: value for key, value in row.settings.items() if key != "task.behind"}
    if own.keys() != row.settings.keys():
        own["task.trained"] = bed.behind[own.get("task.trained", "all")]
    options = {"rounds": 3, "eval_every": 3, "seed": 0}
    return Job(bed.task, row.method, {**bed.shared, **own, **rates, **options})


def peak(job: Job, size: int) -> int:
    """Return the peak of a client of a run, `size` samples at a time, its parameters left out."""
    options = {key: value for key, value in job.options.items() if not key.startswith("task.")}
    own = {key[5:]: value for key, value in job.options.items() if key.startswith("task.")}
    known = job.task in features.TASKS
    task = features.task_of(job.task, **own) if known else load_task(job.task, **own)
    config, method, settings, _ = read_options({"method": job.method, **options})
    return client_peak(task, method, config, settings, size)


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--learn-beds",
        default=",".join(BEDS),
        help=f"beds with commas between them, of: {', '.join(BEDS)}",
    )
    parser.add_argument(
        "--learn-rows", default="", help="rows with commas between them; all by default"
    )
    parser.add_argument("--learn-rounds", type=int, help="rounds of each run; each bed has its own")
    parser.add_argument("--learn-seeds", type=int, default=3, help="seeds 0, 1, … of each row")
    parser.add_argument("--learn-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--learn-out", type=Path, help="file of results: runs in it are not run again"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the accuracy of each row, and the shares of the gap that forward-only rows close."""
    for name in args.learn_beds.split(","):
        check_choice("--learn-beds", name, BEDS)
        bed = BEDS[name]
        labels = [label for label in bed.rows if label in args.learn_rows.split(",")]
        yield from _figures(name, bed, labels or list(bed.rows), args)


def _figures(name: str, bed: Bed, labels: list[str], args: argparse.Namespace) -> Iterator[Figure]:
    rounds = args.learn_rounds or bed.rounds
    tuning = min(rounds, bed.tuning)

    def results(asked: list[Job]) -> list[Metrics]:
        done = run_jobs(asked, args.learn_workers, args.learn_out)
        return [done[each.key()] for each in asked]

    tried = [(label, rates) for label in labels for rates in bed.rows[label].options()]
    jobs = [job(bed, *each, 0, tuning) for each in tried]
    held: dict[str, list[tuple[float, dict[str, float]]]] = {label: [] for label in labels}
    for (label, rates), metrics in zip(tried, results(jobs), strict=True):
        held[label].append((metrics["validation_accuracy"], rates))
    best = {label: max(found, key=lambda one: one[0])[1] for label, found in held.items()}
    asked = [(label, seed) for label in labels for seed in range(args.learn_seeds)]
    found = results([job(bed, label, best[label], seed, rounds) for label, seed in asked])
    accuracy: dict[str, float] = {}
    for label in labels:
        own_runs = [one for (row, _), one in zip(asked, found, strict=True) if row == label]
        seeds = [one["accuracy"] for one in own_runs]
        losses = ", ".join(f"{one['loss']:.4f}" for one in own_runs)
        accuracy[label] = mean(seeds)
        spread = stdev(seeds) if len(seeds) > 1 else 0.0
        grid = ", ".join(f"{_said(rates)}: {value:.4f}" for value, rates in held[label])
        row = bed.rows[label]
        own = ", ".join(f"{key}={value}" for key, value in row.settings.items()) or "no settings"
        yield Figure(
            f"accuracy_{name}_{label}",
            accuracy[label],
            "share",
            None,
            f"{row.method} ({own}), {rounds} rounds, seeds "
            f"{', '.join(f'{value:.4f}' for value in seeds)}, standard deviation {spread:.4f}, "
            f"test loss {losses}; {_said(best[label])}, of seed 0 and {tuning} rounds on held back "
            f"samples: {grid}",
        )
    for figure, gap in bed.gaps.items():
        if not {gap.row, gap.control, gap.first} <= accuracy.keys():
            continue
        low, high, value = accuracy[gap.control], accuracy[gap.first], accuracy[gap.row]
        yield Figure(
            figure,
            (value - low) / (high - low),
            "ratio",
            gap.target,
            f"({gap.row} - {gap.control}) / ({gap.first} - {gap.control}) = "
            f"({value:.4f} - {low:.4f}) / ({high:.4f} - {low:.4f})",
        )
    counted = {label: counting_job(bed, label, best[label]) for label in labels}
    standing = [label for label in labels if "task.behind" in bed.rows[label].settings]
    counts = dict(zip(standing, results([counted[label] for label in standing]), strict=True))
    runs = {label: one for (label, seed), one in zip(asked, found, strict=True) if not seed}
    flops = {label: counts.get(label, runs[label])["client_flops"] for label in labels}
    for label in labels:
        yield Figure(
            f"flops_{name}_{label}",
            flops[label],
            "FLOPs",
            None,
            f"{bed.task}: of a client for a sample, the whole client half",
            lower_is_better=True,
        )
    pairs = {figure: pair for figure, pair in bed.costs.items() if {*pair} <= flops.keys()}
    whole = int(bed.shared["batch_size"]) + 1
    for figure, (label, first) in pairs.items():
        yield Figure(
            f"flops_{figure}",
            flops[label] / flops[first],
            "ratio",
            1.0,
            f"{bed.task}: client FLOPs a sample of {label} over those of {first} in the same "
            f"mini-batches or micro-batches, whole client half: {flops[label] / 1e6:.1f} M / "
            f"{flops[first] / 1e6:.1f} M",
            lower_is_better=True,
        )
        own_peak, least = peak(counted[label], whole), min(peak(counted[first], n) for n in (1, 2))
        yield Figure(
            f"memory_{figure}",
            own_peak / least,
            "ratio",
            None,
            f"{bed.task}: client peak of {label} on whole mini-batches over that of {first} one or "
            f"two samples at a time, the least that micro-batches need: {own_peak / 2**20:.1f} MiB "
            f"/ {least / 2**20:.1f} MiB; above 1 it fits beside it",
            lower_is_better=True,
        )


def _said(rates: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in rates.items()) or "no rates"
