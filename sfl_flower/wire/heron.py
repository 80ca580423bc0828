"""The request of HERON-SFL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from sfl_flower.wire.fields import flag, number, text
from sfl_flower.wire.local import LocalRequest
from sfl_flower.wire.message import Asked
from sfl_flower.wire.probing import GuideSigns, LocalProbes
from sfl_flower.zo import SCALES, Probing

__all__ = ["UPLINKS", "WALKS", "HERONRequest"]

UPLINKS = ("weights", "scalars")
WALKS = {"both": "", "client": "client."}
"""What walks, and how the names of its parameters begin in a model of ``client`` and ``head``."""


@dataclass(frozen=True)
class HERONRequest(LocalRequest):
    """Ask for zeroth-order local steps.

    Attributes
    ----------
    uplink : {"weights", "scalars"}
        What the client sends of its steps.
    trains : {"both", "client"}
        Whether client half and head walk, or the client half alone.
    clip_norm : float
        Scalars that tell of a gradient of a larger norm are scaled down to it; 0: no clipping.
    scale : {"none", "spread"}
        Whether the scalars of a step are divided by their spread.
    cone : float
        Cosine of the angle between directions and momentum; 0: directions know nothing of it.
    walk : bool
        Whether steps are as long as the scalars say, and go where `drawn_signs` does.
    guide : Guide, optional
        One more direction of every step, after the others, the same for all clients of the round.
    guide_rest : float
        With a guide: what the part of an estimate off it counts.
    """

    ACTION: ClassVar[str] = "local"

    probing: LocalProbes = field(default_factory=Probing)
    uplink: Annotated[str, text(UPLINKS)] = "weights"
    trains: Annotated[str, text(WALKS)] = "both"
    clip_norm: Annotated[float, number(0.0, 1e30)] = 0.0
    scale: Annotated[str, text(SCALES)] = "none"
    cone: Annotated[float, number(0.0, 0.999)] = 0.0
    walk: Annotated[bool, flag().stands()] = False
    guide: GuideSigns | None = None
    guide_rest: Annotated[float, number(0.0, 1.0).stands()] = 1.0

    def asks(self) -> Asked:
        """Ask for scalars of every step, that of a guide last, where they stand for the weights."""
        directions = self.probing.probes + (self.guide is not None)
        scalars = (self.steps, directions) if self.uplink == "scalars" else None
        return super().asks()._replace(scalars=scalars)
