"""The option of labels that nobody but their client knows for certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from sfl_flower.config import Settings
from sfl_flower.options import Range

__all__ = ["LabelSettings"]


@dataclass(frozen=True)
class LabelSettings(Settings):
    """How far a client's labels can be told from what it says of them (`docs/privacy.md`).

    Attributes
    ----------
    label_epsilon : float
        ε of each label: clients train on labels that are replaced at random, once a run; 0: on
        their own.
    """

    label_epsilon: Annotated[float, Range(0, 1e3)] = 0.0

    @property
    def control(self) -> dict[str, Any]:
        """Options of the frozen client that has the pace, batches and mode of this method."""
        own = {"label_epsilon": self.label_epsilon} if self.label_epsilon else {}
        return {**super().control, **own}

    def warnings(self) -> list[str]:
        """Return what to mind: what is not hidden."""
        found = super().warnings()
        if self.label_epsilon:
            found.append(
                f"label_epsilon={self.label_epsilon:g} hides the labels of training samples, once "
                "a run and client; smashed data tell of their inputs in the clear."
            )
        return found
