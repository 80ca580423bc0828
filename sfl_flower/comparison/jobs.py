"""The runs of a comparison: planned first, then trained one after another or side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from sfl_flower.errors import SflError, TrainingError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.report.files import plain
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import placed, run_plan
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["Job", "train_all"]


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes
    ----------
    row : str
        The row of the table that it belongs to.
    label : str
        Its name for people.
    options : Mapping[str, Any]
        Flat options, as `Plan.read` takes them.
    out : Path
        Its run directory.
    samples : int
        Training samples it is planned to come to.
    """

    row: str
    label: str
    options: Mapping[str, Any]
    out: Path
    samples: int

    @property
    def rate(self) -> float:
        """Its server rate."""
        return float(self.options["server_lr"])

    def plan(self) -> Plan:
        """Return the checked plan; it goes on from a checkpoint, if there is one."""
        begun = RunDirectory(self.out, tensorboard=False).occupied
        return Plan.read(self.options, self.out, resume=begun)

    def done(self, backend: str) -> bool:
        """Tell whether the run is complete in its directory.

        Parameters
        ----------
        backend : {"ray", "inline"}
            As for `simulate`; it decides on which device clients compute.

        Raises
        ------
        ConfigError
            If the directory holds a run with another configuration.
        """
        directory = RunDirectory(self.out, tensorboard=False)
        if not (self.out / "config.json").exists():
            return False
        directory.check_same(plain(placed(self.plan(), backend).resolved(), "config"))
        return directory.finished


Watch = Callable[[Job, RoundRecord], None]


def train_all(
    jobs: Sequence[Job], task: SplitTask, backend: str, workers: int, watch: Watch | None = None
) -> dict[Path, str]:
    """Train every job that is not done.

    Parameters
    ----------
    jobs : sequence of Job
        The runs.
    task : SplitTask
        The learning problem; with more than one worker it is loaded by name in each.
    backend : {"ray", "inline"}
        As for `simulate`.
    workers : int
        Runs side by side, each in a process of its own.
    watch : callable, optional
        Called with the job and the record of each of its rounds.

    Returns
    -------
    dict of Path to str
        Directories of the runs that failed, and why.
    """
    left = [job for job in jobs if not job.done(backend)]
    if workers > 1 and len(left) > 1:
        return _side_by_side(left, backend, min(workers, len(left)), watch)
    failed = {}
    for job in left:
        try:
            _train(job, task, backend, partial(watch, job) if watch else None)
        except SflError as error:
            failed[job.out] = str(error)
    return failed


def _train(
    job: Job, task: SplitTask, backend: str, observer: Callable[[RoundRecord], None] | None
) -> None:
    run_plan(task, job.plan(), backend=backend, observer=observer)


_records: Any = None
"""In a worker: where the records of its rounds go."""


def _begin(records: Any) -> None:
    global _records
    _records = records
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _work(number: int, job: Job, backend: str) -> str | None:
    plan = job.plan()
    task = load_task(plan.config.task, **plan.task_options)
    try:
        _train(job, task, backend, lambda record: _records.put((number, record)))
    except SflError as error:
        return str(error)
    return None


def _side_by_side(
    jobs: Sequence[Job], backend: str, workers: int, watch: Watch | None
) -> dict[Path, str]:
    context = get_context("spawn")
    records = context.SimpleQueue()
    errors: list[BaseException] = []

    def listen() -> None:
        # Reads to the end whatever happens: a full queue would hold the workers up.
        while (item := records.get()) is not None:
            try:
                if watch and not errors:
                    watch(jobs[item[0]], item[1])
            except BaseException as error:
                errors.append(error)

    listener = Thread(target=listen, daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(records,))
    try:
        futures = [pool.submit(_work, n, job, backend) for n, job in enumerate(jobs)]
        problems = [future.result() for future in futures]
    except BrokenProcessPool:
        # The dead worker may hold the queue, so nothing more is put into it.
        raise TrainingError(
            "A worker process died, perhaps for want of memory; with fewer workers the same "
            "comparison goes on from where it is."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    records.put(None)
    listener.join()
    if errors:
        raise errors[0]
    return {job.out: text for job, text in zip(jobs, problems, strict=True) if text is not None}
