"""What a guide could teach if the server knew the clients' inputs: its limit, and no method.

The server takes the gradient of the clients' own mini-batches, as nobody may, and makes the guide
of it.  What HO-SFL along public inputs lacks to this row is what public inputs do not tell; what
this row lacks to first order is the price of one measured direction a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sfl_flower import Method
from sfl_flower.clients import ho_sfl
from sfl_flower.methods import METHODS
from sfl_flower.node.node import Node
from sfl_flower.server.guide import GuideMaker
from sfl_flower.server.roster import Member
from sfl_flower.strategies.ho_sfl import HOSFL
from sfl_flower.training.modes import eval_mode, kept_buffers
from sfl_flower.wire import StaleReply
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest

__all__ = ["KNOWN", "Known"]

_SEEN: dict[tuple[int, int], list[Tensor]] = {}
"""Round and client -> its mini-batches; server and clients are of one process."""


def forward(node: Node, request: ForwardRequest) -> ForwardReply | StaleReply:
    """Answer as HO-SFL's clients do, and show the inputs."""
    reply = ho_sfl.forward(node, request)
    steps = range(request.minibatches)
    _SEEN[request.round, node.partition] = [
        node.batch(request.round, step, request.batch_size)[0] for step in steps
    ]
    return reply


class Known(HOSFL):
    """HO-SFL along the gradient of the clients' own mini-batches."""

    name: ClassVar[str] = "known"

    def _seen(
        self,
        maker: GuideMaker,
        round: int,
        held: Mapping[Member, tuple[np.ndarray, np.ndarray]],
        weights: Mapping[Member, float],
    ) -> Tensor:
        vector = self.mirror.vector
        total = torch.zeros_like(vector.anchor)
        with eval_mode(self.client_half), kept_buffers(self.client_half), torch.enable_grad():
            for member, (_, lam) in held.items():
                given = torch.from_numpy(lam)
                for x in _SEEN.pop((round, member.partition)):
                    part, given = given[: len(x)], given[len(x) :]
                    found = torch.autograd.grad(self.client_half(x), vector.parameters, part)
                    flat = torch.cat([gradient.reshape(-1) for gradient in found])
                    total += weights[member] * flat
        return total


KNOWN = Method(
    "known", f"{__name__}:Known", {**METHODS["ho_sfl"].handlers, "forward": f"{__name__}:forward"}
)
"""The method."""
