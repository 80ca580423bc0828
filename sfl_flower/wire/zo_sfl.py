"""The messages of ZO-SFL: one exchange ends a step with its scalars and begins the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.errors import WireError
from sfl_flower.wire.codec import Reader, pack
from sfl_flower.wire.hybrid import MAX_PROBES
from sfl_flower.wire.messages import MAX_STEPS, Setup
from sfl_flower.wire.splitfed import StepReply
from sfl_flower.wire.usage import METERS
from sfl_flower.wire.weights import WEIGHT_DTYPES, Packed, packed_bytes, prefixed

__all__ = ["ZOStepReply", "ZOStepRequest", "step_coefficients"]

_WEIGHTS = "weights."


def step_coefficients(scalars: np.ndarray, mu: float) -> np.ndarray:
    """Return ``Δ_p / (2μP)``, what both sides take the directions of a step times.

    Parameters
    ----------
    scalars : numpy.ndarray
        Loss differences Δ, shape [P]; rounded to float32, as they travel.
    mu : float
        Probe length μ.

    Returns
    -------
    numpy.ndarray
        float32, shape [P].

    Raises
    ------
    WireError
        If one is not finite.
    """
    with np.errstate(over="ignore"):
        travelled = scalars.astype(np.float32).astype(np.float64)
        found: np.ndarray = (travelled / (2.0 * mu * len(scalars))).astype(np.float32)
    if not np.isfinite(found).all():
        raise WireError("A loss difference gives a step that is not finite; lower the rates.")
    return found


@dataclass(frozen=True)
class ZOStepRequest:
    """One exchange of ZO-SFL: finish the previous step with its scalars, begin the next.

    Attributes
    ----------
    step : int
        The step to begin, 0 … steps; at `steps` the client only finishes and sends its weights.
    probes : int
        P, probes per mini-batch.
    law : str
        The direction law.
    mu : float
        Probe length μ.
    optimizer : str
        The client optimiser and its settings as canonical JSON.
    keep_state : bool
        Whether the optimiser's state of the last round is taken up.
    eval_mode : bool
        Whether the client half runs in eval mode.
    weights : Packed
        Packed client half at step 0, else empty.
    scalars : numpy.ndarray or None
        Loss differences Δ of the probes of step - 1, float32, shape [probes]; None at step 0.
    """

    TYPE: ClassVar[str] = "train.zo_step"

    round: int
    step: int
    steps: int
    batch_size: int
    setup: Setup
    probes: int
    law: str
    mu: float
    optimizer: str
    keep_state: bool
    eval_mode: bool = False
    weights: Packed = field(default_factory=dict)
    scalars: np.ndarray | None = None
    meter: str = "none"

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        arrays = prefixed(_WEIGHTS, self.weights)
        if self.scalars is not None:
            arrays["scalars"] = self.scalars
        config: dict[str, Any] = {
            "round": self.round,
            "step": self.step,
            "steps": self.steps,
            "batch-size": self.batch_size,
            "probes": self.probes,
            "law": self.law,
            "mu": self.mu,
            "optimizer": self.optimizer,
            "keep-state": self.keep_state,
            "eval-mode": self.eval_mode,
            "meter": self.meter,
        }
        return pack(arrays, {**config, **self.setup.config()}, {})

    def payload(self) -> dict[str, int]:
        """Return the bytes by ledger category."""
        return {
            "weights": packed_bytes(self.weights),
            "scalars": 0 if self.scalars is None else self.scalars.nbytes,
        }

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check an arrived request."""
        reader = Reader(content, cls.TYPE)
        steps = reader.integer("steps", low=1, high=MAX_STEPS)
        probes = reader.integer("probes", low=1, high=MAX_PROBES)
        has = reader.has("scalars")
        request = cls(
            round=reader.integer("round"),
            step=reader.integer("step", high=steps),
            steps=steps,
            batch_size=reader.integer("batch-size", low=1),
            setup=Setup.read(reader),
            probes=probes,
            law=reader.text("law"),
            mu=reader.number("mu", 1e-30, 1e30),
            optimizer=reader.text("optimizer"),
            keep_state=reader.boolean("keep-state"),
            eval_mode=reader.boolean("eval-mode"),
            weights=reader.group(_WEIGHTS, WEIGHT_DTYPES),
            scalars=reader.array("scalars", "float32", shape=(probes,)) if has else None,
            meter=reader.text("meter", METERS),
        )
        reader.done()
        if (request.step == 0) != bool(request.weights) or (request.step == 0) == has:
            raise reader.fail("must bring weights at step 0 and scalars at later steps")
        return request


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

    @staticmethod
    def check(reader: Reader, z: np.ndarray, y: np.ndarray) -> None:
        """Refuse smashed data and labels that do not fit one another."""
        fits = z.ndim >= 2 and y.ndim >= 1 and z.size and y.size
        if not fits or z.shape[0] % (2 * y.shape[0]):
            raise reader.fail(f"has smashed data of shape {z.shape} with labels of shape {y.shape}")
