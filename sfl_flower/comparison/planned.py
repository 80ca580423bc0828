"""Every run of a comparison, checked as far as that goes without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfl_flower.comparison.budget import Budget, fit
from sfl_flower.comparison.comparable import Problem, check_equal, check_problem, problem_of
from sfl_flower.comparison.entries import Entry, controls, method_entries, read, twin_entries
from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.jobs import Job
from sfl_flower.comparison.matched import matched_entries
from sfl_flower.comparison.rows import CONTROL, choice
from sfl_flower.errors import ConfigError
from sfl_flower.methods import Method
from sfl_flower.options import Amount
from sfl_flower.run.run import Plan
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["best_rates", "plan_jobs"]


def plan_jobs(
    task: SplitTask | str,
    methods: Sequence[str | Method] | Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    samples: int,
    seeds: Sequence[int],
    out: Path,
    server_lrs: Sequence[float],
    metric: str,
    memory_matched: bool = False,
    walk_rates: Sequence[float] = (1.0,),
) -> tuple[list[Entry], list[Job], SplitTask]:
    """Return the rows of a comparison, their runs and the task; parameters as for `compare`.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range, or the runs could not be compared.
    """
    name = task if isinstance(task, str) else task.name
    asked, control = method_entries(methods, options, name, bool(server_lrs))
    named = [(CONTROL, read(control, seeds[0]))]
    plans = [read(entry.options, seeds[0]) for entry in asked]
    named += [(entry.label, plan) for entry, plan in zip(asked, plans, strict=True)]
    check_problem([_problem(label, plan) for label, plan in named])
    built = load_task(task, **plans[0].task_options) if isinstance(task, str) else task
    if metric not in built.metrics:
        known = ", ".join(built.metrics)
        raise ConfigError(f"metric is {metric!r}; task {name!r} has {known}.")
    built.check(seeds[0])
    matched = matched_entries(asked, plans, built) if memory_matched else []
    entries = [*controls(plans, control, built), *asked, *matched]
    entries += twin_entries(asked, plans, walk_rates)
    checked = {(e.label, seed): read(e.options, seed) for e in entries for seed in seeds}
    check_problem([_problem(label, plan) for (label, _), plan in checked.items()])
    budgets = {key: _budget(built, plan, samples) for key, plan in checked.items()}
    for entry in entries:
        for seed in seeds:
            plan = checked[entry.label, seed]
            due = budgets[entries[0].label, seed].samples
            check_equal(plan.config, budgets[entry.label, seed].samples, due)
        first = checked[entry.label, seeds[0]]
        config = first.config
        if Amount.budget(config.micro_batch):  # measured when a run begins
            config = replace(config, micro_batch="1")
        first.method.server(built, config, first.settings)  # refuses what it cannot train
    jobs = [
        job
        for entry in entries
        for seed in seeds
        for job in _jobs(
            entry, checked[entry.label, seed], budgets[entry.label, seed], out, server_lrs
        )
    ]
    return entries, jobs, built


def _jobs(
    entry: Entry, plan: Plan, budget: Budget, out: Path, server_lrs: Sequence[float]
) -> list[Job]:
    seed, rated = plan.config.seed, plan.method.facts.server_lr
    jobs = []
    for rate in (server_lrs if rated else ()) or [plan.config.server_lr]:
        options = {**entry.options, "seed": seed, "rounds": budget.rounds, "server_lr": rate}
        label, place = f"{entry.label} seed {seed}", f"seed{seed}"
        if rated:
            label = f"{entry.label} lr {float(rate):g} seed {seed}"
            place = f"lr{float(rate):g}-seed{seed}"
        folder = out / entry.folder / place
        jobs.append(Job(entry.label, label, options, folder, budget.samples))
        jobs[-1].plan()
    return jobs


def _budget(task: SplitTask, plan: Plan, samples: int) -> Budget:
    spec = plan.config.partition_spec()
    held = [len(rows) for rows in task.client_rows(spec)] if spec else []
    if held:  # a run sees it in its first round
        plan.settings.check_held(min(held), plan.config.batch_size)
    return fit(samples, held, plan.config, plan.settings)


def best_rates(jobs: Sequence[Job], failed: Mapping[Path, str], metric: str) -> dict[str, float]:
    """Return the rate of each row with the highest mean over the seeds of these runs.

    Parameters
    ----------
    jobs : sequence of Job
        The runs that rates are chosen by.
    failed : Mapping[Path, str]
        Those that did not end.
    metric : str
        What is compared; rates are chosen by it on the samples held back, where there are some.
    """
    scores: dict[str, dict[float, list[float]]] = {}
    for job in jobs:
        score = -math.inf
        if job.out not in failed:
            run = FinishedRun.load(job.out)
            score = run.score(choice([run], metric))
        found = scores.setdefault(job.row, {}).setdefault(job.rate, [])
        found.append(-math.inf if math.isnan(score) else score)
    return {row: max(by, key=lambda rate: sum(by[rate])) for row, by in scores.items()}


def _problem(label: str, plan: Plan) -> Problem:
    """Return what decides whether a run that has not begun can be compared."""
    known = {"server_precision": plan.method.facts.precision(plan.config)}
    return problem_of(label, plan.resolved(), known)
