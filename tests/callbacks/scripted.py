"""Records with given numbers, and a run whose evaluations say what a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sfl_flower.callbacks import Callback, Run
from sfl_flower.report import RoundRecord
from sfl_flower.run.run import RunResult
from sfl_flower.server.strategy import SplitStrategy
from tests import tiny


def record(number: int, accuracy: float | None = None, **own: Any) -> RoundRecord:
    """Return a record with this accuracy, or of a round without an evaluation."""
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return RoundRecord(number, 10 * number, 4 * number, 0.5 * number, 0.25, metrics, **own)


def view(out: Path | None = None, history: Sequence[RoundRecord] = ()) -> Run:
    """Return what callbacks are told of a run."""
    names = frozenset({"loss", "accuracy"})
    return Run("ho_sfl", "tiny", {"rounds": 9}, names, out, dict, tuple(history))


def says(monkeypatch: pytest.MonkeyPatch, accuracy: Sequence[float]) -> None:
    """Let the evaluation of each round, from that before training on, say this accuracy."""
    monkeypatch.setattr(
        SplitStrategy, "evaluate_model", lambda own: {"loss": 1.0, "accuracy": accuracy[own.round]}
    )


def run(callbacks: Sequence[Callback] = (), **options: Any) -> RunResult:
    """Train a small task with callbacks."""
    return tiny.run(tiny.task(), callbacks=callbacks, **options)
