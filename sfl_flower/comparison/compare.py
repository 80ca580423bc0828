"""Methods side by side, at equal samples on the same partition and initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfl_flower.comparison.assembled import assemble
from sfl_flower.comparison.comparable import (
    Groups,
    check_problem,
    check_seeds,
    group,
    problem_of,
    samples_apart,
)
from sfl_flower.comparison.entries import Entry
from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.jobs import Job, Watch, train_all
from sfl_flower.comparison.pages import write_comparison
from sfl_flower.comparison.planned import best_rates, plan_jobs
from sfl_flower.comparison.rows import Comparison, Row, make_row
from sfl_flower.comparison.twins import take_twins
from sfl_flower.errors import ConfigError, DataError, TrainingError
from sfl_flower.methods import Method
from sfl_flower.options import check_choice, check_range
from sfl_flower.run.simulation import BACKENDS
from sfl_flower.task import SplitTask

__all__ = ["compare", "compare_runs"]


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
    memory_matched: bool = False,
    walk_rates: Sequence[float] = (1.0,),
    on_round: Watch | None = None,
    **options: Any,
) -> Comparison:
    """Train methods at equal samples and put them side by side.

    SplitFed V2 is added where it is not named, and the frozen client in the form of each method:
    its pace of the server half, its mini-batches, its mode of the client half. A method with
    forward-only clients is trained a second time as a walk, whose steps are as long and tell
    nothing (at a client rate of 0 where it has no option `walk`): that shows what of its figure is
    not learned there. A tenth of the training data is held back (option `validation`);
    server rates are chosen on it, and the test set gives the figure at the chosen one. A run that
    is complete in `out` is not trained again; one that was broken off goes on from its checkpoint.

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
        Server rates that every row is run with; it counts at its own best one. Empty: the
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
    memory_matched : bool
        Whether methods of first order get a second row, in micro-batches that take no more client
        memory than the forward-only methods.
    walk_rates : sequence of float
        Client rates that walks are trained at, as multiples of their method's own; the best one on
        the samples held back counts.
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
    ['frozen (server_steps=batch)', 'frozen (server_steps=round)', 'ho_sfl', 'splitfed_v2']
    """
    out = Path(out).expanduser()
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
    if not walk_rates or min(walk_rates) <= 0 or len({*walk_rates}) < len(walk_rates):
        raise ConfigError(
            f"walk_rates is {list(walk_rates)}; it must be at least one multiple of a method's "
            "client rate, each above 0 and given once."
        )
    entries, jobs, built = plan_jobs(
        task, methods, options, samples, drawn, out, server_lrs, metric, memory_matched, walk_rates
    )
    for job in jobs:
        job.done(backend)  # refuses directories of other configurations
    tuning = drawn[: tune_seeds or len(drawn)]
    first = [job for job in jobs if job.options["seed"] in tuning]
    failed = train_all(first, built, backend, workers, on_round)
    chosen = best_rates(first, failed, metric)
    rest = [j for j in jobs if j not in first and j.rate == chosen.get(j.row, j.rate)]
    failed |= train_all(rest, built, backend, workers, on_round)
    return write_comparison(_collect(entries, [*first, *rest], failed, metric, drawn), out)


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
    alone, twins = take_twins(runs)
    groups = group(alone)
    seeds = check_seeds(groups)
    for label, why in samples_apart(groups).items():
        raise ConfigError(f"{label} cannot stand beside the others: {why}")
    rows = [make_row(label, members, seeds, metric) for label, members in groups.items()]
    beside: dict[str, list[Row]] = {}
    for label, members in groups.items():
        for kind, words in (("walk", "walk"), ("still", "at rate 0")):
            for mine in group(twins[kind].get(members[0].path, [])).values():
                named = f"{label} {words}"
                check_seeds({label: members, named: mine})
                beside.setdefault(label, []).append(make_row(named, mine, seeds, metric))
    comparison = assemble(rows, seeds, metric, twins=beside)
    return comparison if out is None else write_comparison(comparison, out)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found or len(set(found)) < len(found) or any(seed < 0 for seed in found):
        raise ConfigError(
            f"seeds is {seeds}; it must be a number of seeds, at least 1, or a list of different "
            "seeds, each at least 0."
        )
    return found


def _collect(
    entries: Sequence[Entry],
    jobs: Sequence[Job],
    failed: Mapping[Path, str],
    metric: str,
    seeds: Sequence[int],
) -> Comparison:
    """Return the comparison of the runs that are complete; rows that cannot stand are refused."""
    groups: Groups = {entry.label: [] for entry in entries}
    refused: dict[str, str] = {}
    notes = []
    rates: dict[str, dict[float, set[int]]] = {}
    for job in jobs:
        whole = rates.setdefault(job.row, {}).setdefault(job.rate, set())
        if job.out in failed:
            notes.append(f"{job.label} failed, so this rate does not count: {failed[job.out]}")
        else:
            run = FinishedRun.load(job.out)
            whole.add(run.seed)
            groups[job.row].append(run)
    for label, found in rates.items():
        if all(len(whole) < len(seeds) for whole in found.values()):
            refused[label] = "at no server rate did the runs of all seeds end."
            del groups[label]
    if not groups:
        raise TrainingError(f"No row is left to compare. {notes[0]}")
    check_problem(
        [problem_of(str(r.path), r.config, r.facts) for runs in groups.values() for r in runs]
    )
    for label, why in samples_apart(groups).items():
        refused[label] = why
        del groups[label]
    made = {label: make_row(label, runs, seeds, metric) for label, runs in groups.items()}
    twins: dict[str, list[Row]] = {}
    for entry in entries:
        if entry.of and entry.label in made:
            twins.setdefault(entry.of, []).append(made.pop(entry.label))
    return assemble([*made.values()], seeds, metric, refused, notes, twins)
