"""What a run learns from, as a few plain values: a resume with something else is noticed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from sfl_flower.config import RunConfig
from sfl_flower.data.seeding import secret_mark
from sfl_flower.errors import TrainingError
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import eval_mode

__all__ = ["check_identity", "identity"]

ROWS = 8
"""Test samples on which the loss is probed."""
TOLERANCE = 1e-3
"""Relative difference of the probed loss that another machine may make."""


def identity(task: SplitTask, config: RunConfig) -> dict[str, Any]:
    """Return what says which test set, loss and server's secret a run has.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    config : RunConfig
        Settings of the run; its seed decides the weights at which the loss is probed.

    Returns
    -------
    dict[str, Any]
        ``test``, the SHA-256 of inputs and labels of the test set, and ``loss``, the mean loss of
        its first samples at the initial weights, None where it is not finite; both are computed
        once a process. ``secret`` marks what clients' keys follow from.
    """

    def find() -> dict[str, Any]:
        samples, digest = task.samples("test"), hashlib.sha256()
        for value in (samples.x, samples.y):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        halves = task.build(config.model_seed)
        x, y = task.batch(samples, slice(0, ROWS))
        with torch.no_grad(), eval_mode(halves.client, halves.server):
            loss = float(task.loss(halves.server(halves.client(x)), y))
        return {"test": digest.hexdigest(), "loss": loss if math.isfinite(loss) else None}

    found = task.memo(("identity", config.model_seed), find)
    return {**found, "secret": secret_mark(config.seed)}


def check_identity(values: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that learned from something else.

    Parameters
    ----------
    values, own : Mapping[str, Any]
        What `identity` gave for the run of the checkpoint, and gives now.

    Raises
    ------
    TrainingError
        If test set, loss or `SFL_SECRET` differ.
    """
    if values["secret"] != own["secret"]:
        raise TrainingError(
            "The checkpoint was made with another SFL_SECRET (or without one), so clients would "
            "draw otherwise; set it as it was, or start anew in another directory."
        )
    if values["test"] != own["test"]:
        what = "with another test set than the task has now"
    elif not _close(values["loss"], own["loss"]):
        what = (
            f"with another loss than the task has now (on the first test samples, at the initial "
            f"weights, it was {values['loss']:.6g} and is {own['loss']:.6g}; the model and its "
            "transform decide it too)"
        )
    else:
        return
    raise TrainingError(
        f"The checkpoint was made {what}, so going on would be another run; resume with the task "
        "as it was, or start anew in another directory."
    )


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-9)
