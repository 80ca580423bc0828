"""The messages of ZO-SFL: one exchange ends a step with its scalars and begins the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np

from sfl_flower.wire.common import Setup
from sfl_flower.wire.fields import BatchSize, Steps, Weights, array
from sfl_flower.wire.message import Asked, Request
from sfl_flower.wire.probing import PlainProbes
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.splitfed import StepReply, check_step
from sfl_flower.wire.usage import Meter

__all__ = ["ZOStepReply", "ZOStepRequest"]


@dataclass(frozen=True)
class ZOStepRequest(Request):
    """One exchange of ZO-SFL: finish the previous step with its scalars, begin the next.

    Attributes
    ----------
    step : int
        The step to begin, 0 … steps; at `steps` the client only finishes and sends its weights.
    weights : Packed
        The client half at step 0, else empty.
    scalars : numpy.ndarray or None
        Loss differences Δ of the probes of step - 1, float32, shape [P]; None at step 0.
    """

    ACTION: ClassVar[str] = "step"

    round: int
    step: int
    steps: Steps
    batch_size: BatchSize
    setup: Setup
    probing: PlainProbes
    optimizer: str
    keep_state: bool
    weights: Weights = field(default_factory=dict)
    scalars: Annotated[np.ndarray, array("float32", "scalars")] | None = None
    meter: Meter = "none"

    def asks(self) -> Asked:
        """Ask for two forwards a probe and sample, or for weights after the last step."""
        return Asked(1, rows=2 * self.probing.probes, weights=self.step == self.steps)

    def check(self, reader: Reader) -> None:
        """Refuse a step without what it begins from."""
        check_step(reader, self.step, self.steps)
        first, scalars, shape = self.step == 0, self.scalars, (self.probing.probes,)
        if first != bool(self.weights) or first == (scalars is not None):
            raise reader.fail("must bring weights at step 0 and scalars at later steps")
        if scalars is not None and scalars.shape != shape:
            raise reader.fail(f"has 'scalars' of shape {scalars.shape}, expected {shape}")


@dataclass(frozen=True)
class ZOStepReply(StepReply):
    """As SplitFed's, with smashed data of all probes of a step.

    Attributes
    ----------
    z : numpy.ndarray or None
        Smashed data at θ_c + μu_1, θ_c - μu_1, θ_c + μu_2, …, float32, shape [2·P·n, ...], a
        mini-batch after another; None after the last step.
    """

    WHAT: ClassVar[str] = "zeroth-order step reply"

    def check_samples(self, reader: Reader, z: np.ndarray, y: np.ndarray) -> None:
        """Refuse smashed data and labels that do not fit one another."""
        fits = z.ndim >= 2 and y.ndim >= 1 and z.size and y.size
        if not fits or z.shape[0] % (2 * y.shape[0]):
            raise reader.fail(f"has smashed data of shape {z.shape} with labels of shape {y.shape}")
