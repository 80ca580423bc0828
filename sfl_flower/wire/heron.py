"""The requests of CSE-FSL and HERON-SFL, and what both sides derive from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sfl_flower.wire.codec import Reader
from sfl_flower.wire.local import LocalRequest
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
MAX_PROBES = 65_536


@dataclass(frozen=True)
class CSEFSLRequest(LocalRequest):
    """Ask for first-order local steps."""

    TYPE: ClassVar[str] = "train.cse_fsl"


@dataclass(frozen=True)
class HERONRequest(LocalRequest):
    """Ask for zeroth-order local steps.

    Attributes
    ----------
    probes : int
        P, probes per step.
    law : str
        Direction law.
    mu : float
        μ, the probe length.
    central : bool
        Two forwards a probe instead of one.
    uplink : {"weights", "scalars"}
        What the client sends of its steps.
    trains : {"both", "client"}
        Whether client half and head walk, or the client half alone.
    """

    TYPE: ClassVar[str] = "train.heron"

    probes: int = 1
    law: str = "rademacher"
    mu: float = 1e-3
    central: bool = False
    uplink: str = "weights"
    trains: str = "both"
    clip_norm: float = 0.0

    def own(self) -> dict[str, Any]:
        """Return the settings of the method that travel."""
        return {
            "probes": self.probes,
            "law": self.law,
            "mu": self.mu,
            "central": self.central,
            "uplink": self.uplink,
            "trains": self.trains,
            "clip-norm": self.clip_norm,
        }

    @classmethod
    def read_own(cls, reader: Reader) -> dict[str, Any]:
        """Read the settings of the method as arguments of the class."""
        return {
            "probes": reader.integer("probes", low=1, high=MAX_PROBES),
            "law": reader.text("law", LAWS),
            "mu": reader.number("mu", 1e-12, 1e6),
            "central": reader.boolean("central"),
            "uplink": reader.text("uplink", UPLINKS),
            "trains": reader.text("trains", TRAINS),
            "clip_norm": reader.number("clip-norm", 0.0, 1e30),
        }


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
