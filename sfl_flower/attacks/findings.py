"""What attacks found, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sfl_flower.attacks.settings import AttackSettings

__all__ = ["AttackReport", "CutReport", "Finding"]

Kind = Literal["inputs", "labels"]
"""What an attack is after."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One attack at one cut, under one defence.

    Attributes
    ----------
    attack : str
        Its name.
    defence : str
        What clients do to smashed data.
    kind : {"inputs", "labels"}
        What it is after.
    reached : Mapping[str, float]
        Measures: ``mse``, ``psnr``, ``ssim``; or ``accuracy`` and ``auc``.
    guess : Mapping[str, float]
        What is reached without smashed data: the mean auxiliary input, the commonest label.
    class_guess : Mapping[str, float]
        Of inputs, what the mean auxiliary input of the victim's label reaches: labels are sent
        beside smashed data. Empty of labels.
    facts : Mapping[str, float]
        What else was measured on the way.
    shown : Tensor, optional
        The reconstructions in 0 .. 1.
    """

    attack: str
    defence: str
    kind: Kind
    reached: Mapping[str, float]
    guess: Mapping[str, float]
    class_guess: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    shown: Tensor | None = None

    @property
    def of_guess(self) -> float | None:
        """The error over the better guess's, 1 where nothing was learned; None of labels."""
        if "mse" not in self.reached:
            return None
        least = min(self.guess["mse"], self.class_guess.get("mse", math.inf))
        return self.reached["mse"] / least if least else None

    @property
    def failed(self) -> bool:
        """Whether a guess is better."""
        share = self.of_guess
        return share is not None and share > 1


@dataclass(frozen=True, eq=False)
class CutReport:
    """All that was found at a cut.

    Attributes
    ----------
    at : str
        The cut.
    shape : tuple of int
        Of a sample's smashed data.
    accuracy : Mapping[str, float]
        Of the model by defence, on the test set; of `defences` in that order.
    defences : Mapping[str, str]
        Each with its numbers in the unit of the smashed data.
    findings : sequence of Finding
        One an attack and defence.
    notes : sequence of str
        What was left out and why.
    """

    at: str
    shape: tuple[int, ...]
    accuracy: Mapping[str, float]
    defences: Mapping[str, str]
    findings: Sequence[Finding]
    notes: Sequence[str]


@dataclass(frozen=True, eq=False)
class AttackReport:
    """Cuts of a model under attack.

    Attributes
    ----------
    task : str
        The task's name.
    weights : str
        What of the model is attacked: its first weights, or a run's.
    settings : AttackSettings
        How hard the attacker tried.
    metric : str
        What `CutReport.accuracy` is: the task's first metric.
    truth : Tensor
        The victims' inputs in 0 .. 1.
    guess : Tensor
        The mean auxiliary input, [1, ...].
    class_guess : Tensor
        For each victim the mean auxiliary input of its label, [N, ...].
    cuts : sequence of CutReport
        In the order asked for.
    notes : sequence of str
        Who holds which samples, and what the figures are not.
    """

    task: str
    weights: str
    settings: AttackSettings
    metric: str
    truth: Tensor
    guess: Tensor
    class_guess: Tensor
    cuts: Sequence[CutReport]
    notes: Sequence[str]
