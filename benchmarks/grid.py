"""Runs of a grid side by side, each in a process of its own, and a file of their results."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import features
from benchmarks.known import KNOWN
from benchmarks.outright import OUTRIGHT
from sfl_flower import simulate
from sfl_flower.report.table import Summary
from sfl_flower.run.run import RunResult
from sfl_flower.task import SplitTask

__all__ = ["Job", "result_of", "run_jobs", "summary_of"]

Metrics = dict[str, float]

OWN = {method.name: method for method in (KNOWN, OUTRIGHT)}
"""Controls that are methods of the benchmarks, by name."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes
    ----------
    task, method : str
        What is learned, a ready-made task or one of `benchmarks.features.TASKS`, and how, a
        method of the package or one of `OWN`.
    options : mapping of str to value
        Settings of run, method and task, the seed among them.
    """

    task: str
    method: str
    options: Mapping[str, Any]

    def key(self) -> str:
        """Return everything that decides the run, as text."""
        return json.dumps(asdict(self), sort_keys=True)


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    out: Path | None = None,
    train: Callable[[Job], Metrics] | None = None,
) -> dict[str, Metrics]:
    """Run jobs that are not in a file yet, and return all results by `Job.key`.

    Parameters
    ----------
    jobs : iterable of Job
        What to run.
    workers : int
        Runs side by side.
    out : Path, optional
        A file of results, one JSON line each; new ones are added.
    train : callable, optional
        Runs a job and returns its results, a function that another process can import; else those
        of the whole model after the last round.
    """
    jobs = list(jobs)
    done = _read(out)
    left = [job for job in {job.key(): job for job in jobs}.values() if job.key() not in done]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for job, metrics in zip(left, pool.map(train or _train, left), strict=True):
            done[job.key()] = metrics
            if out:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": job.key(), "metrics": metrics}) + "\n")
    return {job.key(): done[job.key()] for job in jobs}


def result_of(job: Job) -> RunResult:
    """Run a job in this process, and return its history and its summary."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    task: str | SplitTask = job.task
    options = dict(job.options)
    if job.task in features.TASKS:
        own = {key: options.pop(key) for key in job.options if key.startswith("task.")}
        task = features.task_of(job.task, **{key[5:]: value for key, value in own.items()})
    method = OWN.get(job.method, job.method)
    return simulate(task, method, backend="inline", **options)


def summary_of(job: Job) -> Summary:
    """Run a job in this process, and return its summary."""
    return result_of(job).summary


def _train(job: Job) -> Metrics:
    """Return the results of the whole model after the last round, and a client's operations.

    ``client_flops`` are those of a sample, 0 in runs too short to be metered.
    """
    summary = summary_of(job)
    return {**summary.metrics, "client_flops": summary.client_flops or 0.0}


def _read(path: Path | None) -> dict[str, Metrics]:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["run"]: line["metrics"] for line in lines}
