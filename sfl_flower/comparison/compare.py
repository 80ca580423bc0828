"""Methods side by side, at equal samples on the same partition and initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfl_flower.comparison.budget import Budget, fit
from sfl_flower.comparison.comparable import (
    Groups,
    check_equal,
    check_problem,
    check_seeds,
    group,
    problem_of,
    samples_apart,
)
from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.jobs import Job, Watch, train_all
from sfl_flower.comparison.pages import write_comparison
from sfl_flower.comparison.rows import CEILING, CONTROL, Comparison, Row, assemble, make_row
from sfl_flower.config import LOCAL, check_choice, check_range
from sfl_flower.errors import ConfigError, DataError, TrainingError
from sfl_flower.methods import Method, find_method
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import BACKENDS
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["compare", "compare_runs"]

FOLLOWS = {
    "method": "methods",
    "task": "task",
    "rounds": "samples",
    "seed": "seeds",
}
"""Options that a comparison sets itself, and what they follow from."""


def compare(
    task: SplitTask | str,
    methods: Sequence[str | Method] | Mapping[str, Mapping[str, Any]],
    *,
    samples: int,
    seeds: int | Sequence[int] = 3,
    out: Path | str,
    server_lrs: Sequence[float] = (),
    tune_seeds: int = 0,
    backend: str = "inline",
    workers: int = 1,
    metric: str = "accuracy",
    on_round: Watch | None = None,
    **options: Any,
) -> Comparison:
    """Train methods at equal samples and put them side by side.

    The frozen client and SplitFed V2 are added where they are not named. A run that is complete in
    `out` is not trained again; one that was broken off goes on from its checkpoint.

    Parameters
    ----------
    task : SplitTask or str
        The learning problem, or the name of a ready-made one.
    methods : sequence of str or Method, or mapping of str to mapping
        Keys of `sfl_flower.METHODS`, ``"package.module:name"`` of methods of your own, or such
        methods themselves; as a mapping, with options of that method's runs alone.
    samples : int
        Training samples of a run, over all clients; every run takes the whole rounds that come
        nearest.
    seeds : int or sequence of int
        How many seeds, 0, 1, ..., or which.
    out : path
        Directory of the run directories, the table and the plots.
    server_lrs : sequence of float
        Server rates that every method is run with; it counts at its own best one. Empty: the
        `server_lr` of the options. Methods that have no server rate run once.
    tune_seeds : int
        How many of the seeds the server rates are tried with; the others run at the best rate
        alone. 0: all.
    backend : {"inline", "ray"}
        As for `simulate`.
    workers : int
        Runs side by side, each in a process of its own with one torch thread; inline only.
    metric : str
        The result that is compared, higher is better.
    on_round : callable, optional
        Called with the `Job` and the `RoundRecord` of each round.
    **options
        Settings of every run, and of every method; those of the task begin with ``task.``.

    Returns
    -------
    Comparison
        Rows, notes and what was refused; also written to `out`.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range, or the runs could not be compared; nothing has
        been trained then.
    TrainingError
        If no method is left to compare.

    Examples
    --------
    >>> from sfl_flower import compare
    >>> result = compare("digits", ["ho_sfl"], samples=2560, seeds=1, out="runs/three", clients=4)
    >>> [row.label for row in result.rows]
    ['frozen', 'ho_sfl', 'splitfed_v2']
    """
    out = Path(out)
    check_range("samples", samples, 1)
    check_choice("backend", backend, BACKENDS)
    check_range("workers", workers, 1)
    if workers > 1 and (backend != "inline" or not isinstance(task, str)):
        raise ConfigError(
            f"workers is {workers}; runs side by side need backend inline and a ready-made task "
            "given by name, otherwise it must be 1."
        )
    drawn = _seeds(seeds)
    check_range("tune_seeds", tune_seeds, 0, len(drawn))
    settings = _settings(methods, options, server_lrs)
    jobs, built = _plan(task, settings, samples, drawn, out, server_lrs, metric)
    for job in jobs:
        job.done()  # refuses directories of other configurations
    tuning = drawn[: tune_seeds or len(drawn)]
    first = [job for job in jobs if job.options["seed"] in tuning]
    failed = train_all(first, built, backend, workers, on_round)
    chosen = _best_rates(first, failed, metric)
    rest = [j for j in jobs if j not in first and j.rate == chosen.get(j.method, j.rate)]
    failed |= train_all(rest, built, backend, workers, on_round)
    return write_comparison(_collect([*first, *rest], failed, metric, drawn), out)


def compare_runs(
    paths: Sequence[Path | str], out: Path | str | None = None, metric: str = "accuracy"
) -> Comparison:
    """Put runs that exist side by side.

    Parameters
    ----------
    paths : sequence of path
        Run directories, or directories with run directories somewhere below them.
    out : path, optional
        Where to write table and plots; nothing is written without one.
    metric : str
        The result that is compared, higher is better.

    Raises
    ------
    ConfigError
        If the runs cannot be compared; the message names what differs.
    DataError
        If a run is not complete or cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(file.parent for file in path.rglob("config.json"))
        if not inside:
            raise DataError(f"There is no run in {path}: no config.json there or below.")
        found += [directory for directory in inside if directory not in found]
    if not found:
        raise ConfigError("There is nothing to compare; name at least one run directory.")
    runs = [FinishedRun.load(path) for path in found]
    check_problem([problem_of(str(run.path), run.config, run.facts) for run in runs])
    groups = group(runs)
    seeds = check_seeds(groups)
    for label, why in samples_apart(groups).items():
        raise ConfigError(f"{label} cannot stand beside the others: {why}")
    rows = [_row(label, runs, seeds, metric) for label, runs in groups.items()]
    comparison = assemble(rows, seeds, metric)
    return comparison if out is None else write_comparison(comparison, out)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found or len(set(found)) < len(found) or any(seed < 0 for seed in found):
        raise ConfigError(
            f"seeds is {seeds}; it must be a number of seeds, at least 1, or a list of different "
            "seeds, each at least 0."
        )
    return found


def _settings(
    methods: Sequence[str | Method] | Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    server_lrs: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """Return the options of each method of the table, the control and the ceiling included."""
    found = [find_method(named) for named in methods]
    given = list(methods.values()) if isinstance(methods, Mapping) else [{} for _ in found]
    own = {method.name: options for method, options in zip(found, given, strict=True)}
    methods_of = {method.name: method for method in found}
    if len(own) < len(methods):
        twice = ", ".join(method.name for method in found)
        raise ConfigError(f"methods are {twice}; name each once.")
    names = [*([] if CONTROL in own else [CONTROL]), *own, *([] if CEILING in own else [CEILING])]
    shared = {key.replace("-", "_"): value for key, value in options.items()}
    settings = {}
    for name in names:
        extra = {key.replace("-", "_"): value for key, value in own.get(name, {}).items()}
        settings[name] = {**shared, **extra}
        for key, source in FOLLOWS.items():
            if key in settings[name]:
                raise ConfigError(f"{key} of a comparison follows from {source}; leave it out.")
        if server_lrs and "server_lr" in settings[name]:
            raise ConfigError("server_lr is given twice; leave it out where server_lrs are given.")
        settings[name]["method"] = methods_of.get(name, name)
    return settings


def _plan(
    task: SplitTask | str,
    settings: Mapping[str, Mapping[str, Any]],
    samples: int,
    seeds: Sequence[int],
    out: Path,
    server_lrs: Sequence[float],
    metric: str,
) -> tuple[list[Job], SplitTask]:
    """Return every run of the comparison, checked as far as that goes without training."""
    name = task if isinstance(task, str) else task.name
    plans = {
        (method, seed): _read({**own, "task": name, "seed": seed})
        for method, own in settings.items()
        for seed in seeds
    }
    first = next(iter(plans.values()))
    check_problem([problem_of(m, p.resolved(), {}) for (m, _), p in plans.items()])
    if first.config.partition == LOCAL:
        raise ConfigError("partition is 'local'; a comparison divides the task's own data.")
    built = load_task(task, **first.task_options) if isinstance(task, str) else task
    if metric not in built.metrics:
        known = ", ".join(built.metrics)
        raise ConfigError(f"metric is {metric!r}; task {name!r} has {known}.")
    built.check(seeds[0])
    budgets = {key: _budget(built, plan, samples) for key, plan in plans.items()}
    jobs = []
    for (method, seed), plan in plans.items():
        budget = budgets[method, seed]
        check_equal(plan.config, budget.samples, budgets[CONTROL, seed].samples)
        if seed == seeds[0]:
            plan.method.server(built, plan.config, plan.settings)  # refuses what it cannot train
        rated = plan.method.facts.server_lr
        tried = server_lrs if rated else ()
        for rate in tried or [plan.config.server_lr]:
            given = {**settings[method], "task": name, "seed": seed}
            given |= {"rounds": budget.rounds, "server_lr": rate}
            label = f"{method} lr {float(rate):g} seed {seed}"
            directory = out / method / f"lr{float(rate):g}-seed{seed}"
            if not rated:
                label, directory = f"{method} seed {seed}", out / method / f"seed{seed}"
            jobs.append(Job(label, given, directory, budget.samples))
            jobs[-1].plan()
    return jobs, built


def _read(options: Mapping[str, Any]) -> Plan:
    try:
        return Plan.read(options)
    except ConfigError as error:
        if str(error).startswith("Unknown option of method"):
            raise ConfigError(
                f"{error} Every method is given this option; one that only some methods have "
                "is written METHOD:KEY=VALUE on the command line, or methods={METHOD: {KEY: "
                "VALUE}} in Python."
            ) from None
        raise


def _budget(task: SplitTask, plan: Plan, samples: int) -> Budget:
    spec = plan.config.partition_spec()
    held = [len(rows) for rows in task.client_rows(spec)] if spec else []
    if held:  # a run sees it in its first round
        plan.settings.check_held(min(held), plan.config.batch_size)
    return fit(samples, held, plan.config, plan.settings)


def _best_rates(jobs: Sequence[Job], failed: Mapping[Path, str], metric: str) -> dict[str, float]:
    """Return the rate of each method with the highest mean over the seeds of these runs."""
    scores: dict[str, dict[float, list[float]]] = {}
    for job in jobs:
        score = -math.inf if job.out in failed else FinishedRun.load(job.out).score(metric)
        found = scores.setdefault(job.method, {}).setdefault(job.rate, [])
        found.append(-math.inf if math.isnan(score) else score)
    return {method: max(by, key=lambda r: sum(by[r])) for method, by in scores.items()}


def _row(label: str, runs: Sequence[FinishedRun], seeds: Sequence[int], metric: str) -> Row:
    return make_row(label, runs, seeds, metric)


def _collect(
    jobs: Sequence[Job], failed: Mapping[Path, str], metric: str, seeds: Sequence[int]
) -> Comparison:
    """Return the comparison of the runs that are complete; rows that cannot stand are refused."""
    groups: Groups = {}
    refused: dict[str, str] = {}
    notes = []
    rates: dict[str, dict[float, set[int]]] = {}
    for job in jobs:
        groups.setdefault(job.method, [])
        whole = rates.setdefault(job.method, {}).setdefault(job.rate, set())
        if job.out in failed:
            notes.append(f"{job.label} failed, so this rate does not count: {failed[job.out]}")
        else:
            run = FinishedRun.load(job.out)
            whole.add(run.seed)
            groups[job.method].append(run)
    for method, found in rates.items():
        if all(len(whole) < len(seeds) for whole in found.values()):
            refused[method] = "at no server rate did the runs of all seeds end."
            del groups[method]
    if not groups:
        raise TrainingError(f"No row is left to compare. {notes[0]}")
    check_problem(
        [problem_of(str(r.path), r.config, r.facts) for runs in groups.values() for r in runs]
    )
    for method, why in samples_apart(groups).items():
        refused[method] = why
        del groups[method]
    rows = [_row(method, runs, seeds, metric) for method, runs in groups.items()]
    return assemble(rows, seeds, metric, refused, notes)
