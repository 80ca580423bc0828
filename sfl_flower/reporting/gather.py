"""What is put on one page: the runs of some directories, or the rows of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report.files import read_json
from sfl_flower.report.varying import VARYING
from sfl_flower.reporting.runs import ReadRun, is_run

__all__ = ["CONTROL", "Gathered", "Group", "gather"]

CONTROL = "frozen"
"""The method whose clients are never trained."""
RESULTS, ATTACK = "results.json", "attack.json"

_PROBLEM = ("task", "clients", "sampled", "batch_size", "partition", "alpha", "validation")


@dataclass(frozen=True)
class Group:
    """Runs that are one curve: one method with one set of options, a run a seed.

    Attributes
    ----------
    label : str
        Its name on the page.
    runs : tuple of ReadRun
        By seed.
    row : Mapping[str, Any]
        What a comparison says of it; empty without one.
    """

    label: str
    runs: tuple[ReadRun, ...]
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.runs[0].method

    def term(self, name: str) -> Any:
        """Return one of the terms it was trained on; None where it is not known."""
        return self.runs[0].terms.get(name)

    def score(self, metric: str) -> tuple[float, float | None]:
        """Return mean and standard deviation of the runs' last results; None with one run."""
        found = [run.score(metric) for run in self.runs]
        return mean(found), stdev(found) if len(found) > 1 else None

    def mean(self, values: Sequence[float | None]) -> float | None:
        """Return the mean of what is known."""
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    @property
    def client_peak(self) -> int | None:
        """Most memory of a client over the runs, in bytes."""
        return max((run.client_peak for run in self.runs if run.client_peak), default=None)

    @property
    def client_flops(self) -> float | None:
        """Operations of a client for a sample, mean over the runs."""
        return self.mean([run.client_flops for run in self.runs])


@dataclass(frozen=True)
class Gathered:
    """All that a page shows.

    Attributes
    ----------
    groups : tuple of Group
        The curves.
    metric : str
        The result that is shown; empty where nothing was evaluated.
    attacks : tuple of Path
        Files of attacks' results.
    comparison : Mapping[str, Any]
        Remarks of a comparison and its refused rows; empty without one.
    apart : tuple of str
        In what the groups' problems differ, so that they cannot be held against each other.
    """

    groups: tuple[Group, ...]
    metric: str
    attacks: tuple[Path, ...] = ()
    comparison: Mapping[str, Any] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    @property
    def runs(self) -> list[ReadRun]:
        """Every run on the page."""
        return [run for group in self.groups for run in group.runs]

    @property
    def control(self) -> float | None:
        """The highest figure of a control, None where there is none or it is no measure."""
        controls = [g.score(self.metric)[0] for g in self.groups if g.method == CONTROL]
        return max(controls, default=None) if len(self.groups) > 1 and not self.apart else None


def gather(paths: Sequence[Path]) -> Gathered:
    """Read directories.

    Parameters
    ----------
    paths : sequence of Path
        Run directories, folders of some, or one output folder of a comparison; beside them results
        of attacks.

    Raises
    ------
    DataError
        If a directory is none of these, or damaged.
    ConfigError
        If a comparison stands beside runs, or there is no run.
    """
    compared = [path for path in paths if (path / RESULTS).is_file()]
    attacks = [path / ATTACK for path in paths if (path / ATTACK).is_file() and not is_run(path)]
    rest = [p for p in dict.fromkeys(paths) if p not in compared and p / ATTACK not in attacks]
    if compared and (rest or len(compared) > 1):
        raise ConfigError(
            f"{compared[0]} is a comparison, which fills a page of its own; name it alone, or put "
            "runs side by side with sfl compare --from."
        )
    comparison: dict[str, Any] = {}
    if compared:
        groups, comparison = _rows(compared[0])
    else:
        runs = [ReadRun.read(each) for path in rest for each in _inside(path)]
        groups = _grouped(runs)
    if not groups:
        raise ConfigError("There is no run to report on; name at least one run directory.")
    own = [run.path for group in groups for run in group.runs]
    attacks += [
        found for path in own for found in sorted({*path.glob(ATTACK), *path.glob(f"*/{ATTACK}")})
    ]
    metric = str(comparison.get("metric") or _metric(groups))
    return Gathered(tuple(groups), metric, tuple(attacks), comparison, _apart(groups))


def _inside(path: Path) -> list[Path]:
    """Return the runs in a folder: itself, those of a comparison that is going, or all."""
    if not path.is_dir():
        raise DataError(f"{path} is no directory; name the directory that a run left.")
    if is_run(path):
        return [path]
    going = sorted(at.parent for at in path.glob("*/*seed*/config.json"))
    return going or sorted(each for each in path.iterdir() if is_run(each)) or [path]


def _rows(folder: Path) -> tuple[list[Group], dict[str, Any]]:
    """Read the rows of a comparison, each with its runs."""
    found = read_json(folder / RESULTS)
    try:
        groups = [
            Group(
                str(row["label"]),
                tuple(ReadRun.read(_where(folder, run["directory"])) for run in row["runs"]),
                dict(row),
            )
            for row in found["rows"]
        ]
        said = {
            "metric": str(found["metric"]),
            "notes": [str(note) for note in found["notes"]],
            "refused": {str(label): str(why) for label, why in found["refused"].items()},
        }
        if not all(group.runs for group in groups):
            raise ValueError("a row has no runs")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{folder / RESULTS} is no result of a comparison; write it anew with the same sfl "
            "compare command."
        ) from error
    return groups, said


def _where(folder: Path, directory: str) -> Path:
    path = folder / directory
    if not is_run(path):
        raise DataError(
            f"{folder / RESULTS} names a run in {path}, which is not there; put it back, or "
            "compare anew."
        )
    return path


def _grouped(runs: Sequence[ReadRun]) -> list[Group]:
    """Put runs that differ in their seed alone into one group; a seed that is there twice not."""
    found: dict[str, list[ReadRun]] = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if key not in VARYING}
        found.setdefault(json.dumps(own, sort_keys=True), []).append(run)
    parted: list[list[ReadRun]] = []
    for members in found.values():
        seeds = {run.seed for run in members}
        alike = len(seeds) == len(members) and len({run.config["rounds"] for run in members}) == 1
        parted += [members] if alike else [[run] for run in members]
    labels = [_label(members, parted) for members in parted]
    labels = [
        f"{label} [{members[0].path.name}]" if labels.count(label) > 1 else label
        for label, members in zip(labels, parted, strict=True)
    ]
    if len({*labels}) < len(labels):
        labels = [f"{members[0].method} [{members[0].path}]" for members in parted]
    return [
        Group(label, tuple(sorted(members, key=lambda run: str(run.seed))))
        for label, members in zip(labels, parted, strict=True)
    ]


def _label(members: Sequence[ReadRun], groups: Sequence[Sequence[ReadRun]]) -> str:
    """Return the method, with the options that tell it from other groups of it."""
    own, method = members[0].config, members[0].method
    rivals = [group[0].config for group in groups if group[0].method == method]
    keys = [k for k in sorted(own) if k not in VARYING and any(r.get(k) != own[k] for r in rivals)]
    tail = ", ".join(f"{key}={own[key]}" for key in keys[:3])
    return f"{method} ({tail})" if tail else method


def _metric(groups: Sequence[Group]) -> str:
    """Return the result that is shown: accuracy, or the first that any run has."""
    names = dict.fromkeys(
        name for group in groups for run in group.runs for r in run.history for name in r.metrics
    )
    known = [name for name in names if not name.startswith("validation_")]
    if "accuracy" in known:
        return "accuracy"
    return next((name for name in known if name != "loss"), "loss" if "loss" in known else "")


def _apart(groups: Sequence[Group]) -> tuple[str, ...]:
    """Say in what the problems of groups differ."""
    configs = [group.runs[0].config for group in groups]
    keys = [*_PROBLEM, *sorted({k for c in configs for k in c if k.startswith("task.")})]
    values = {key: list(dict.fromkeys(str(c.get(key)) for c in configs)) for key in keys}
    found = [f"{key}: {', '.join(seen)}" for key, seen in values.items() if len(seen) > 1]
    seeds = {tuple(str(run.seed) for run in group.runs) for group in groups}
    if len(seeds) > 1:
        found.append("seeds")
    samples = [run.samples for group in groups for run in group.runs]
    if max(samples) > 1.02 * min(samples):
        found.append(f"training samples: {min(samples):,} to {max(samples):,}")
    return tuple(found)
