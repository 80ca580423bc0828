"""A control of guides: the server steps along its own vector, whatever the clients measure.

What HO-SFL with a guide has above it is what the clients' probe is worth.  The step is as long as
the vector says, along the guide that is made of it, and clients would need no probe: one forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from sfl_flower import Method
from sfl_flower.methods import METHODS
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.guide import GuideMaker
from sfl_flower.server.pipelined import Probed
from sfl_flower.server.roster import Member
from sfl_flower.strategies.ho_sfl import HOSFL
from sfl_flower.training.device import to_array

__all__ = ["OUTRIGHT", "Outright"]


class Outright(HOSFL):
    """HO-SFL with a guide, whose scalar is that of the guide's own vector."""

    name: ClassVar[str] = "outright"

    def _seen(
        self,
        maker: GuideMaker,
        round: int,
        held: Mapping[Member, tuple[np.ndarray, np.ndarray]],
        weights: Mapping[Member, float],
    ) -> Tensor:
        """Return the vector, and keep what it would tell as the mean of the clients."""
        found = super()._seen(maker, round, held, weights)
        self._own = to_array(found).astype(np.float64) / sum(weights.values())
        return found

    def update(self, probed: Probed, exchange: Exchange) -> dict[str, float]:
        """Step by what the server's own vector tells of the guide, whatever clients told."""
        if probed.guide is not None:
            header = self.mirror.journal.header
            directions = self.mirror.vector.directions(header.run_key, header.law)
            along = to_array(directions.along(probed.guide).values()).astype(np.float64)
            own = float(along @ self._own) * self._probing.unit
            scalars = {at: _with(found, own) for at, found in probed.scalars.items()}
            probed = replace(probed, scalars=scalars)
        return super().update(probed, exchange)


def _with(scalars: np.ndarray, own: float) -> np.ndarray:
    changed = scalars.copy()
    changed[:, -1] = own
    return changed


OUTRIGHT = Method("outright", f"{__name__}:Outright", METHODS["ho_sfl"].handlers)
"""The method."""
