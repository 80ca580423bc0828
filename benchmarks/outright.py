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
from sfl_flower.server.roster import Member
from sfl_flower.strategies.ho_sfl import HOSFL
from sfl_flower.training.device import to_array
from sfl_flower.wire.ho_sfl import ProbeReply
from sfl_flower.zo import Guide

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

    def _update(
        self,
        round: int,
        used: Mapping[Member, int],
        replies: Mapping[Member, ProbeReply],
        exchange: Exchange,
        guide: Guide | None,
    ) -> dict[str, float]:
        if guide is not None:
            header = self.mirror.journal.header
            along = self.mirror.vector.directions(header.run_key, header.law).along(guide).values()
            own = float(to_array(along).astype(np.float64) @ self._own) * self._probing.unit
            replies = {member: _with(reply, own) for member, reply in replies.items()}
        return super()._update(round, used, replies, exchange, guide)


def _with(reply: ProbeReply, own: float) -> ProbeReply:
    scalars = reply.scalars.copy()
    scalars[:, -1] = own
    return replace(reply, scalars=scalars)


OUTRIGHT = Method("outright", f"{__name__}:Outright", METHODS["ho_sfl"].handlers)
"""The method."""
