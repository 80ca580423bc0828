"""A run read back as far as it goes: complete, still going, or broken off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfl_flower.errors import DataError
from sfl_flower.report import History, RunDirectory, Summary
from sfl_flower.report.files import read_json
from sfl_flower.report.lock import is_held
from sfl_flower.report.run_directory import CONFIG

__all__ = ["Bytes", "ReadRun", "is_run"]

Bytes = Mapping[str, Mapping[str, int]]
"""By category ``{"up": bytes, "down": bytes}``."""


def is_run(path: Path) -> bool:
    """Tell whether a directory holds a run, as far as its files' names say."""
    return (path / CONFIG).is_file()


@dataclass(frozen=True)
class ReadRun:
    """What a run left so far.

    Attributes
    ----------
    path : Path
        Its directory.
    config : Mapping[str, Any]
        Its resolved configuration.
    versions : Mapping[str, Any]
        Of what it ran with.
    history : History
        The records of its rounds.
    ledger : Bytes
        Bytes by category; empty where none were written yet.
    counts : Mapping[str, Any]
        What else stands in ``ledger.json``.
    summary : Summary or None
        Its outcome; None while it is not complete.
    facts : Mapping[str, Any]
        What must be equal in runs that are compared; empty while it is not complete.
    going : bool
        Whether a process is at work in the directory, as far as its lock says.
    """

    path: Path
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    history: History
    ledger: Bytes
    counts: Mapping[str, Any]
    summary: Summary | None
    facts: Mapping[str, Any]
    going: bool

    @classmethod
    def read(cls, path: Path) -> ReadRun:
        """Read a run directory.

        Raises
        ------
        DataError
            If it is none, or a file in it is damaged.
        """
        if not is_run(path):
            raise DataError(
                f"{path} is no run directory: it has no {CONFIG}; name the directory that a run "
                "was given with --out, or the output folder of sfl compare."
            )
        directory = RunDirectory(path, tensorboard=False)
        config, history = directory.config, directory.history
        if not {"method", "task", "rounds"} <= config.keys():
            raise DataError(f"{path / CONFIG} is of no run: it names no method, task or rounds.")
        summary, facts = directory.load_summary() if directory.finished else (None, {})
        versions = read_json(path / CONFIG).get("versions")
        counts = _counts(path / "ledger.json")
        ledger = summary.ledger if summary else counts.pop("bytes", {})
        versions = versions if isinstance(versions, dict) else {}
        going = is_held(path)
        return cls(path, config, versions, history, ledger, counts, summary, facts, going)

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config["method"])

    @property
    def rounds(self) -> int:
        """Rounds that are done."""
        return max((record.round for record in self.history), default=0)

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.summary is not None:
            return "complete"
        done = f"{self.rounds:,} of {self.config['rounds']:,} rounds"
        return f"going, {done}" if self.going else f"not complete, {done}"

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.config.get("seed")

    @property
    def samples(self) -> int:
        """Training samples so far, all clients."""
        return self.history[-1].samples if len(self.history) else 0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far."""
        return self.history[-1].seconds if len(self.history) else 0.0

    @property
    def client_peak(self) -> int | None:
        """Most memory that torch allocated on a client, in bytes; None if not measured."""
        found = self.summary.client_peak_bytes if self.summary else None
        return found or self.counts.get("client_peak_bytes") or None

    @property
    def client_flops(self) -> float | None:
        """Operations of a client for a sample; None if not measured."""
        found = self.summary.client_flops if self.summary else None
        return found or self.counts.get("client_flops") or None

    @property
    def terms(self) -> Mapping[str, Any]:
        """On what terms it was trained; empty while it is not complete."""
        return self.summary.terms if self.summary else {}

    def both_ways(self) -> tuple[int, int]:
        """Return the bytes up and down so far, all clients."""
        if not len(self.history):
            return 0, 0
        return self.history[-1].bytes_up, self.history[-1].bytes_down

    def score(self, metric: str) -> float:
        """Return the last evaluation's result, NaN where there is none."""
        values = self.history.series("round", metric)[1]
        if self.summary is not None:
            return float(self.summary.metrics.get(metric, math.nan))
        return values[-1] if values else math.nan


def _counts(path: Path) -> dict[str, Any]:
    """Read ``ledger.json``; nothing where there is none yet."""
    if not path.exists():
        return {}
    found = read_json(path)
    try:
        found["bytes"] = {
            str(name): {way: int(both[way]) for way in ("up", "down")}
            for name, both in found["bytes"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no ledger of a run; put it back as it was.") from error
    return dict(found)
