"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from sfl_flower.callbacks.callback import Run
from sfl_flower.callbacks.packages import need
from sfl_flower.callbacks.tracker import Tracker
from sfl_flower.options import Choice, check_options

__all__ = ["WandB"]


@dataclass(eq=False)
class WandB(Tracker):
    """Log a run to Weights & Biases.

    Attributes
    ----------
    project : str
        The project.
    name : str
        Of the run; Weights & Biases makes one up where it is left out.
    mode : {"", "online", "offline", "disabled"}
        Left out, what WANDB_MODE says, or online.

    Raises
    ------
    ConfigError
        If a value is not legal.
    """

    package = "wandb"

    project: str = "sfl-flower"
    name: str = ""
    mode: Annotated[str, Choice(("", "online", "offline", "disabled"))] = ""

    def __post_init__(self) -> None:
        check_options(self)

    def open(self, run: Run, known: str | None) -> str:
        """Open the run; what it has on this machine is in the run directory."""
        wandb: Any = need("wandb", "wandb")
        self._run: Any = wandb.init(
            project=self.project,
            name=self.name or None,
            id=known,
            resume="allow",
            mode=self.mode or None,
            dir=None if run.out is None else str(run.out),
            config=dict(run.config),
            settings=wandb.Settings(console="off"),  # what is shown here stays here
        )
        return str(self._run.id)

    def log(self, numbers: Mapping[str, float], round: int) -> None:
        """Log the numbers of a round."""
        self._run.log(dict(numbers), step=round)

    def close(self, why: str, failed: bool) -> None:
        """Close the run."""
        self._run.summary["ended"] = why
        self._run.finish(exit_code=int(failed))
