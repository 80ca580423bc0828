"""Settings by trial: runs with other rates, judged by training samples that no client is given.

Optuna proposes, each trial is a run of the same length, and what counts is the task's first metric
on samples that are held back (`RunConfig.validation`).  The test set is never looked at: whoever
reports it trains once more with what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfl_flower.comparison.spaces import Among, Between, Space
from sfl_flower.errors import ConfigError, SflError
from sfl_flower.methods import Method, find_method, read_options
from sfl_flower.options import check_choice
from sfl_flower.report.files import config_digest, write_json
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import run_plan
from sfl_flower.server.evaluation import VALIDATION
from sfl_flower.task import SplitTask

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

__all__ = ["Among", "Between", "Trials", "Tried", "spaces_of", "tune"]

HELD_BACK = 0.1
"""Share of the training samples that judge, unless `validation` says."""
QUICK_ROUNDS, QUICK = 6, 8
"""Rounds of each run, and runs, of a search for a rate alone: 48 rounds."""
WIDE = 10.0
"""How many times smaller or larger than its default a rate may be."""
FILE = "trials.log"


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes
    ----------
    options : Mapping[str, Any]
        What was tried.
    value : float
        What it reached on held back samples; NaN where the run could not go on.
    why : str
        Why it could not, empty where it did.
    """

    options: Mapping[str, Any]
    value: float
    why: str = ""


@dataclass(frozen=True)
class Trials:
    """All that was tried.

    Attributes
    ----------
    method : str
        The method.
    metric : str
        What `Tried.value` is.
    largest : bool
        Whether the largest is the best.
    rounds : int
        Of each run.
    tried : list of Tried
        In the order of the trials.
    """

    method: str
    metric: str
    largest: bool
    rounds: int
    tried: list[Tried] = field(default_factory=list)

    def ranked(self) -> list[Tried]:
        """Return the trials that ended, the best first."""
        ended = [each for each in self.tried if math.isfinite(each.value)]
        return sorted(ended, key=lambda each: each.value, reverse=self.largest)

    @property
    def best(self) -> Tried:
        """The best trial.

        Raises
        ------
        ConfigError
            If none ended.
        """
        if ranked := self.ranked():
            return ranked[0]
        why = self.tried[-1].why if self.tried else "none was begun"
        raise ConfigError(f"No trial came to its end; the last reason: {why}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [
            {"options": dict(t.options), "value": t.value if not t.why else None, "why": t.why}
            for t in self.tried
        ]
        return {
            "method": self.method, "metric": self.metric, "rounds": self.rounds,
            "best": dict(self.best.options), "trials": rows,
        }  # fmt: skip


def spaces_of(method: Method, options: Mapping[str, Any]) -> dict[str, Space]:
    """Return what is tried of a method where nobody says: its rates.

    Parameters
    ----------
    method : Method
        The method.
    options : Mapping[str, Any]
        What is given; a rate that is given is the middle of what is tried.
    """
    config, _, settings, _ = read_options({**options, "method": method})
    found: dict[str, Space] = {}
    for name, own in (("client_lr", vars(settings)), ("server_lr", vars(config))):
        rate = own.get(name)
        used = name != "server_lr" or method.facts.server_lr
        if rate and used:
            found[name] = Between(rate / WIDE, rate * WIDE)
    if not found:
        raise ConfigError(
            f"Method '{method.name}' has no rate above 0 to tune; say what to try with --over, "
            "such as --over server-lr=0.01..1."
        )
    return found


def tune(
    task: SplitTask,
    method: str | Method,
    *,
    over: Mapping[str, Space] | None = None,
    trials: int = 20,
    quick: bool = False,
    backend: str = "inline",
    metric: str = "",
    smallest: bool = False,
    out: Path | None = None,
    watch: Callable[[Tried], None] | None = None,
    **options: Any,
) -> Trials:
    """Find settings of a method on a task.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    method : str or Method
        The method, as for `simulate`.
    over : Mapping[str, Between or Among], optional
        What is tried, by option; its rates when left out. The first trial has the defaults.
    trials : int
        Runs in all.
    quick : bool
        Whether to look for one setting alone, the client's rate where `over` is left out, in 8 runs
        of 6 rounds.
    backend : {"inline", "ray"}
        As for `simulate`.
    metric : str
        Of the task, or ``loss``; its first metric where it is left out.
    smallest : bool
        Whether less of it is better; of ``loss`` it is.
    out : Path, optional
        A directory that keeps the trials: the same call goes on with them, and ends in
        ``tuning.json``.
    watch : callable, optional
        Called with each trial.
    **options
        Settings of run and method that stay; `rounds` of each run, and `seed`, are among them.

    Returns
    -------
    Trials
        All that was tried.

    Raises
    ------
    ConfigError
        If an option is not legal, Optuna is missing, or no samples can be held back.

    Examples
    --------
    >>> from sfl_flower.comparison.tuning import tune
    >>> from sfl_flower.tasks import load_task
    >>> found = tune(load_task("digits"), "ho_sfl", trials=2, rounds=2)  # doctest: +SKIP
    >>> found.best.options  # doctest: +SKIP
    """
    chosen = find_method(method)
    if trials < 1:
        raise ConfigError(f"trials is {trials}; it must be at least 1.")
    fixed = {"validation": HELD_BACK, **options, "method": chosen, "task": task.name}
    if quick and over and len(over) > 1:
        raise ConfigError(
            f"quick looks for one setting, and over has {len(over)}: {', '.join(over)}; name one, "
            "or leave quick out."
        )
    if quick:
        fixed["rounds"] = QUICK_ROUNDS
    spaces = dict(over) if over else spaces_of(chosen, options)
    for name in spaces:
        if name.startswith("task.") or name in ("task", "method", "rounds", "seed"):
            raise ConfigError(
                f"over has '{name}', which stays in all trials; what can be tried are settings of "
                "the run and of its method, such as client_lr."
            )
    plan = Plan.read(fixed)
    if not plan.config.validation or plan.config.partition_spec() is None:
        raise ConfigError(
            "Trials are judged by training samples that no client is given: set validation above "
            "0, and a partition of one training set (partition=local has none)."
        )
    fixed["eval_every"] = plan.config.rounds
    metric = metric or next(iter(task.metrics), "loss")
    check_choice("metric", metric, (*task.metrics, "loss"))
    least = smallest or metric == "loss"
    found = Trials(chosen.name, f"{VALIDATION}{metric}", not least, plan.config.rounds)

    def run(drawn: Mapping[str, Any]) -> Tried:
        # What is not legal is the asker's fault, and ends the search.
        own = Plan.read({**fixed, **drawn})
        try:
            result = run_plan(task, own, backend=backend)
        except ConfigError:
            raise
        except SflError as error:
            return Tried(drawn, math.nan, str(error))
        value = result.summary.metrics[found.metric]
        return Tried(drawn, value, "" if math.isfinite(value) else "its loss is not finite.")

    def note(tried: Tried) -> Tried:
        found.tried.append(tried)
        if watch is not None:
            watch(tried)
        return tried

    if quick:
        name, space = next(iter(spaces.items()))
        for value in space.grid(QUICK):
            note(run({name: value}))
    else:
        _by_optuna(spaces, plan, trials, out, run, note, found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "tuning.json", found.to_dict())
    return found


def _defaults(spaces: Mapping[str, Space], plan: Plan) -> dict[str, Any]:
    """Return what the options are where nobody tunes, as far as that can be tried."""
    told = {**vars(plan.config), **vars(plan.settings)}
    found = {}
    for name, space in spaces.items():
        value = told.get(name)
        if isinstance(space, Among):
            legal = value in space.values
        else:
            legal = isinstance(value, int | float) and space.low <= value <= space.high
        if legal:
            found[name] = value
    return found


def _by_optuna(
    spaces: Mapping[str, Space],
    plan: Plan,
    trials: int,
    out: Path | None,
    run: Callable[[Mapping[str, Any]], Tried],
    note: Callable[[Tried], Tried],
    found: Trials,
) -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "Settings are proposed by the package optuna, which is not installed; install it with "
            "pip install 'sfl-flower[tune]', or look for a rate alone with --quick."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked = [plan.resolved(), {name: repr(space) for name, space in sorted(spaces.items())}]
    study = _study(found, plan.config.seed, out, config_digest({"search": asked}))
    defaults = _defaults(spaces, plan)
    for before in _ended(study.get_trials(deepcopy=False)):
        note(before)
    if not found.tried and defaults:
        study.enqueue_trial(dict(defaults))

    def objective(trial: Trial) -> float:
        drawn = {name: space.draw(trial, name) for name, space in spaces.items()}
        tried = note(run(drawn))
        trial.set_user_attr("options", drawn)
        if tried.why:
            trial.set_user_attr("why", tried.why)
            raise optuna.TrialPruned(tried.why)
        return tried.value

    study.optimize(objective, n_trials=max(0, trials - len(found.tried)))


def _study(found: Trials, seed: int, out: Path | None, digest: str) -> Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(out / FILE)))
    name = f"{found.method} {digest[:16]}"
    kept = [] if storage is None else [s.study_name for s in storage.get_all_studies()]
    if kept and name not in kept:
        raise ConfigError(
            f"{out} holds trials of another search, of {kept[0].split()[0]} with other options or "
            "another choice of what is tried; take another directory."
        )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize" if found.largest else "minimize",
        load_if_exists=True,
    )
    # What is drawn follows from the seed and how many trials there are, also after a break.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))
    return study


def _ended(trials: Sequence[Any]) -> Iterable[Tried]:
    """Yield what earlier trials of a search gave."""
    for trial in trials:
        options = trial.user_attrs.get("options")
        if options is not None:
            why = str(trial.user_attrs.get("why", ""))
            yield Tried(options, math.nan if why else float(trial.value), why)
