"""What attacks found, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sfl_flower.attacks.settings import AttackSettings

__all__ = ["AttackReport", "CutReport", "Finding"]

Kind = str
"""``inputs`` for what was seen of inputs, ``labels``, or ``tokens``."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One attack at one cut, under one defence.

    Attributes
    ----------
    attack : str
        Its name.
    defence : str
        What clients do to smashed data.
    kind : {"inputs", "labels", "tokens"}
        What it is after.
    reached : Mapping[str, float]
        Measures: ``mse``, ``psnr``, ``ssim``; or ``accuracy`` and ``auc``.
    guess : Mapping[str, float]
        What is reached without smashed data: the mean auxiliary input, the commonest label.
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
    facts: Mapping[str, float] = field(default_factory=dict)
    shown: Tensor | None = None

    @property
    def of_guess(self) -> float | None:
        """The error as a share of the guess's, 1 where nothing was learned; None of labels."""
        if "mse" not in self.reached or not self.guess["mse"]:
            return None
        return self.reached["mse"] / self.guess["mse"]


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
    cuts: Sequence[CutReport]
    notes: Sequence[str]
