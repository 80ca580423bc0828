"""Which runs may stand side by side: the same problem, the same data, the same samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfl_flower.comparison.budget import LIMIT
from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.rows import CONTROL
from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError

__all__ = [
    "Groups",
    "Problem",
    "check_equal",
    "check_problem",
    "check_seeds",
    "group",
    "problem_of",
    "samples_apart",
]

Groups = dict[str, list[FinishedRun]]

PER_SEED = ("initial_weights", "client_trained", "trained")
"""What must be equal among runs of one seed only."""


@dataclass(frozen=True)
class Problem:
    """What must be equal in runs that are compared: `shared` by all, `own` by those of a seed."""

    where: str
    seed: int
    shared: Mapping[str, Any]
    own: Mapping[str, Any]


def problem_of(where: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Problem:
    """Return what decides whether a run can be compared.

    Parameters
    ----------
    where : str
        The run's name in errors.
    config : Mapping[str, Any]
        Its resolved configuration.
    facts : Mapping[str, Any]
        What its `summary.json` adds; of a run that has not begun the server half's precision.
    """
    shared: dict[str, Any] = {"task": config["task"]}
    shared.update({key: value for key, value in config.items() if key.startswith("task.")})
    clients = config["clients"]
    shared["clients"] = clients
    shared["sampled"] = config["sampled"] or clients
    shared["batch_size"] = config["batch_size"]
    shared["partition"] = config["partition"]
    if config["partition"] == "dirichlet":
        shared["alpha"] = config["alpha"]
    shared["validation"] = config["validation"]
    if config["partition"] == "pathological":
        shared["classes_per_client"] = config["classes_per_client"]
    own = {key: facts[key] for key in PER_SEED if facts.get(key) is not None}
    known = {key: value for key, value in facts.items() if value is not None and key not in own}
    return Problem(where, int(config["seed"]), {**shared, **known}, own)


def check_problem(problems: Sequence[Problem]) -> None:
    """Refuse runs of different problems.

    Raises
    ------
    ConfigError
        Naming the options that differ and both values.
    """
    first_of: dict[int, Problem] = {}
    for problem in problems:
        first = problems[0]
        pairs = [(first, first.shared, problem.shared)]
        same_seed = first_of.setdefault(problem.seed, problem)
        pairs.append((same_seed, same_seed.own, problem.own))
        for reference, theirs, ours in pairs:
            # A key that only one of them knows says nothing, but for an option of the task.
            keys = [
                k
                for k in {**theirs, **ours}
                if k.startswith("task.") or (k in theirs and k in ours)
            ]
            apart = [k for k in keys if theirs.get(k) != ours.get(k)]
            if apart:
                what = "; ".join(f"{k} is {ours.get(k)!r}, not {theirs.get(k)!r}" for k in apart)
                raise ConfigError(
                    f"{problem.where} cannot stand beside {reference.where}: {what}. Rows are "
                    "compared on the same task, data, model, partition, clients, batch size and "
                    "precision of the server half."
                )


def group(runs: Sequence[FinishedRun]) -> Groups:
    """Return the rows: runs of one method and settings, whatever their seed and server rate.

    The label of a row is its method; where a method has several rows, the options in which they
    differ are added, and the control always has its server steps.

    Raises
    ------
    ConfigError
        If there are two runs of one row with the same seed and server rate.
    """
    rows: dict[str, list[FinishedRun]] = {}
    for run in runs:
        rows.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    labelled: Groups = {}
    for members in rows.values():
        method = members[0].method
        rivals = [row[0].settings for row in rows.values() if row[0].method == method]
        own = members[0].settings
        apart = [k for k in sorted(own) if any(r.get(k) != own[k] for r in rivals)]
        if method == CONTROL and "server_steps" in own:  # the form of the control is always named
            apart = ["server_steps", *(key for key in apart if key != "server_steps")]
        tail = ", ".join(f"{key}={own[key]}" for key in apart)
        labelled[f"{method} ({tail})" if tail else method] = members
        seen: dict[tuple[int, float], Path] = {}
        for run in members:
            key = (run.seed, run.server_lr)
            if key in seen:
                raise ConfigError(
                    f"{run.path} and {seen[key]} are the same run: {method} with seed {run.seed} "
                    f"and server_lr {run.server_lr:g}; name each once."
                )
            seen[key] = run.path
    return labelled


def check_seeds(groups: Groups) -> list[int]:
    """Return the seeds, the same for every row.

    Raises
    ------
    ConfigError
        If a row lacks a seed that another has.
    """
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    for label, runs in groups.items():
        rates: dict[float, set[int]] = {}
        for run in runs:
            rates.setdefault(run.server_lr, set()).add(run.seed)
        best = max(rates.values(), key=len)
        if missing := [seed for seed in seeds if seed not in best]:
            raise ConfigError(
                f"{label} has no run with seed {missing[0]} at a server rate that has the others: "
                f"its seeds are {_list(best)}, those of all rows {_list(seeds)}. Rows are compared "
                "on the same partitions and initial weights, so add the runs that are missing."
            )
    return seeds


def samples_apart(groups: Groups) -> dict[str, str]:
    """Return the rows whose samples are too far from those of the control, and why.

    The control is the frozen client, or the first row when there is none.
    """
    name = next((k for k, runs in groups.items() if runs[0].method == CONTROL), next(iter(groups)))
    wanted = {run.seed: run.summary.samples for run in groups[name]}
    refused = {}
    for label, runs in groups.items():
        for run in runs:
            due = wanted.get(run.seed, run.summary.samples)
            apart = run.summary.samples - due
            if abs(apart) > LIMIT * due:
                refused[label] = (
                    f"samples is {run.summary.samples:,} with seed {run.seed}, not {due:,} as for "
                    f"{name} ({apart / max(1, due):+.1%}; the limit is {LIMIT:.0%}){_lost(run)}."
                )
                break
    return refused


def _lost(run: FinishedRun) -> str:
    count = sum(record.failures + record.rejected for record in run.history())
    return f", and {count} replies were lost in {run.path}" if count else f", in {run.path}"


def _list(seeds: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def check_equal(config: RunConfig, planned: int, wanted: int) -> None:
    """Refuse, before training, a method whose whole rounds miss the control's samples.

    Raises
    ------
    ConfigError
        If they are further apart than the limit.
    """
    if abs(planned - wanted) > LIMIT * wanted:
        raise ConfigError(
            f"{config.method} trains {planned:,} samples in whole rounds nearest to those of "
            f"{CONTROL}, {wanted:,} (seed {config.seed}); they must be within {LIMIT:.0%}. Set "
            f"samples to {planned:,}, or fewer mini-batches in a round."
        )
