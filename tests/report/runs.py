"""Complete run directories whose numbers are given, so that tables can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.config import RunConfig
from sfl_flower.report import RoundRecord, RunDirectory, Summary
from sfl_flower.tasks import task_options

FACTS = {"cut": "a", "training_samples": 100, "test_samples": 10, "initial_weights": "00"}
TERMS = {
    "client": "first order", "client_mode": "", "client_forwards": 2, "client_backprops": 1,
    "client_schedule": "constant", "server_schedule": "constant", "server_pace": "batch",
    "server_steps": 300,
}  # fmt: skip
LEDGER = {"smashed": {"up": 2048, "down": 0}, "weights": {"up": 0, "down": 1024}}


def finished(
    path: Path,
    method: str,
    accuracy: float,
    *,
    samples: int = 1000,
    facts: dict[str, Any] | None = None,
    terms: dict[str, Any] | None = None,
    validation_accuracy: float | None = None,
    **changes: Any,
) -> FinishedRun:
    """Write the directory of a run of one round and read it back."""
    shared = RunConfig(task="fashion_mnist", rounds=1).to_dict()
    options = {f"task.{name}": value for name, value in task_options("fashion_mnist").items()}
    config = {**shared, **options, "method": method, **changes}
    with RunDirectory.create(path, config, tensorboard=False) as run:
        for number in (0, 1):
            metrics = {"accuracy": accuracy * number}
            up, down = 2048 * number, 1024 * number
            run.append(
                RoundRecord(
                    number, samples * number, 4 * number, 2.0 * number, 0.5, metrics, up, down
                )
            )
        metrics = {"accuracy": accuracy}
        if validation_accuracy is not None:
            metrics["validation_accuracy"] = validation_accuracy
        summary = Summary(
            method,
            metrics,
            samples,
            LEDGER,
            4,
            4096,
            2.0,
            path,
            1e6,
            terms={**TERMS, **(terms or {})},
        )
        run.write_summary(summary, {**FACTS, **(facts or {})})
    return FinishedRun.load(path)
