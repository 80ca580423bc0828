"""The messages of SplitFed: one exchange ends a step and begins the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sfl_flower.wire.common import Setup, check_batch
from sfl_flower.wire.fields import (
    BatchSize,
    CutGradients,
    Labels,
    Samples,
    Smashed,
    Steps,
    Weights,
)
from sfl_flower.wire.message import Asked, Reply, Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.usage import NO_USAGE, Meter, Usage

__all__ = ["StepReply", "StepRequest"]


@dataclass(frozen=True)
class StepRequest(Request):
    """One exchange of SplitFed: finish the previous step with λ, begin the next.

    Attributes
    ----------
    step : int
        The step to begin, 0 … steps; at `steps` the client only finishes and sends its weights.
    weights : Packed
        The client half at step 0, else empty.
    lam : numpy.ndarray or None
        λ of step - 1; None at step 0.
    """

    ACTION: ClassVar[str] = "step"

    round: int
    step: int
    steps: Steps
    batch_size: BatchSize
    setup: Setup
    optimizer: str
    keep_state: bool
    weights: Weights = field(default_factory=dict)
    lam: CutGradients | None = None
    meter: Meter = "none"

    def asks(self) -> Asked:
        """Ask for a mini-batch, or for weights after the last step."""
        return Asked(batches=1, weights=self.step == self.steps)

    def check(self, reader: Reader) -> None:
        """Refuse a step without what it begins from."""
        check_step(reader, self.step, self.steps)
        first = self.step == 0
        if first != bool(self.weights) or first == (self.lam is not None):
            raise reader.fail("must bring weights at step 0 and a cut gradient at later steps")


@dataclass(frozen=True)
class StepReply(Reply):
    """Smashed data and labels of a SplitFed step, or the client's weights after the last.

    Attributes
    ----------
    z, y : numpy.ndarray or None
        Smashed data and labels; None after the last step.
    weights : Packed
        The client half after the last step, else empty.
    """

    WHAT: ClassVar[str] = "step reply"

    round: int
    step: int
    samples: Samples
    z: Smashed | None = None
    y: Labels | None = None
    weights: Weights = field(default_factory=dict)
    usage: Usage = NO_USAGE

    def check(self, reader: Reader) -> None:
        """Refuse a reply that is neither a step's nor the last."""
        if self.weights:
            if self.z is not None or self.y is not None:
                raise reader.fail("brings weights beside a batch; they follow the last step alone")
        elif self.z is None or self.y is None:
            missing = "z" if self.z is None else "y"
            raise reader.fail(f"lacks the array '{missing}', and is not the last: without weights")
        else:
            self.check_samples(reader, self.z, self.y)

    def check_samples(self, reader: Reader, z: np.ndarray, y: np.ndarray) -> None:
        """Refuse smashed data and labels that do not fit one another."""
        check_batch(reader, z, y)


def check_step(reader: Reader, step: int, steps: int) -> None:
    """Refuse a step that lies behind the last one."""
    if step > steps:
        raise reader.fail(f"has step={step}, expected a whole number in [0, {steps}]")
