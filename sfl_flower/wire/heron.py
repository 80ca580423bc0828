"""The requests of CSE-FSL and HERON-SFL, and what both sides derive from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sfl_flower.wire.fields import Probes, number, text
from sfl_flower.wire.local import LocalRequest
from sfl_flower.wire.message import Asked
from sfl_flower.zo import LAWS, Key, clip_scalars

__all__ = [
    "UPLINKS",
    "CSEFSLRequest",
    "HERONRequest",
    "heron_coefficients",
    "heron_keys",
    "heron_names",
]

UPLINKS = ("weights", "scalars")
TRAINS = ("both", "client")


@dataclass(frozen=True)
class CSEFSLRequest(LocalRequest):
    """Ask for first-order local steps."""

    TYPE: ClassVar[str] = "train.cse_fsl"


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
    """

    TYPE: ClassVar[str] = "train.heron"

    probes: Probes = 1
    law: Annotated[str, text(LAWS)] = "rademacher"
    mu: Annotated[float, number(1e-12, 1e6)] = 1e-3
    central: bool = False
    uplink: Annotated[str, text(UPLINKS)] = "weights"
    trains: Annotated[str, text(TRAINS)] = "both"
    clip_norm: Annotated[float, number(0.0, 1e30)] = 0.0

    def asks(self) -> Asked:
        """Ask for scalars of every step, where they stand for the weights."""
        scalars = (self.steps, self.probes) if self.uplink == "scalars" else None
        return super().asks()._replace(scalars=scalars)


def heron_keys(round: int, partition: int, step: int, probes: int) -> list[Key]:
    """Return the keys of a client's directions in one step."""
    return [Key(round, step, partition + 1, probe) for probe in range(probes)]


def heron_names(model: nn.Module, trains: str) -> list[str]:
    """Return the names of the parameters that walk, in a model of ``client`` and ``head``."""
    found = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name in found if trains == "both" or name.startswith("client.")]


def heron_coefficients(
    scalars: NDArray[np.float32], mu: float, clip_norm: float = 0.0
) -> NDArray[np.float32]:
    """Return the factors of the directions, clipped ``v_p / (P μ)``, rounded to float32 once."""
    clipped = clip_scalars(scalars, mu, clip_norm)
    factors: NDArray[np.float32] = (clipped / (scalars.size * mu)).astype(np.float32)
    return factors
