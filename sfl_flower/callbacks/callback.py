"""What a callback is: hooks that are told of a run, and one that may end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sfl_flower.report.history import RoundRecord
from sfl_flower.report.table import Summary

__all__ = ["Callback", "Ended", "Run", "Written"]


@dataclass(frozen=True)
class Run:
    """The run that a callback is told of; nothing of it can be changed.

    Attributes
    ----------
    method, task : str
        Their names.
    config : Mapping[str, Any]
        Every setting of run, method and task, as in ``config.json``.
    metrics : frozenset of str
        What an evaluation has: ``loss``, the task's metrics, and ``validation_`` before each where
        samples are held back.
    out : Path or None
        The run directory.
    model : callable
        Returns a copy of the whole model's weights as they are now, by their original names, on
        the CPU.
    history : tuple of RoundRecord
        What is known when the run begins: nothing of a new one, of one that goes on every round up
        to the checkpoint.
    """

    method: str
    task: str
    config: Mapping[str, Any]
    metrics: frozenset[str]
    out: Path | None
    model: Callable[[], dict[str, Tensor]]
    history: tuple[RoundRecord, ...] = ()


@dataclass(frozen=True)
class Written:
    """A checkpoint that was written.

    Attributes
    ----------
    round : int
        The round after which the run goes on from it.
    path : Path
        The file.
    """

    round: int
    path: Path


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes
    ----------
    why : str
        What ended it before its last round, a sentence; empty where every round was run.
    failed : bool
        Whether it was broken off.
    summary : Summary or None
        Its outcome; None where it was broken off.
    """

    why: str = ""
    failed: bool = False
    summary: Summary | None = None


class Callback:
    """Base of callbacks; a subclass has the hooks that it needs.

    Callbacks are told of a run on the server and change nothing of it: what they are given is
    read-only, and all that they may do is end it, by what `stop` returns. An error in `check` or
    `on_begin` refuses the run; one that a later hook raises costs the callback its place and not
    the run: a sentence says so, and the run goes on without it.
    """

    def claims(self) -> str:
        """Return what no other callback of the run may write to; "" where there is nothing."""
        return ""

    def check(self, run: Run) -> None:
        """Refuse what cannot work, before anything is written or trained.

        Raises
        ------
        ConfigError
            With what is wrong and what to do.
        """

    def on_begin(self, run: Run) -> None:
        """Begin a run afresh, or go on with one, whose records so far are in `run.history`."""

    def stop(self, record: RoundRecord) -> str | None:
        """Return why the round of this record is to be the last, or nothing.

        Asked at the end of every round, before its record is kept; of a run that goes on first for
        each record so far, so that what a callback counts here is what it would have counted in a
        run that never stopped. What it returns is a sentence without its full stop. The last round
        is always evaluated.
        """
        return None

    def on_evaluation(self, record: RoundRecord) -> None:
        """Take note of a round that was evaluated; its record is kept."""

    def on_round(self, record: RoundRecord) -> None:
        """Take note of a round, of that before training (0) as well; its record is kept."""

    def on_checkpoint(self, written: Written) -> None:
        """Take note of a checkpoint; a run without a directory writes none."""

    def on_end(self, ended: Ended) -> None:
        """Take note of the end of the run, however it came, where `on_begin` was done."""
