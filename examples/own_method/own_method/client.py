"""The client half: as in HO-SFL, but only whether each probe went up or down is told."""

import numpy as np

from own_method.messages import SignReply
from sfl_flower.clients import ho_sfl
from sfl_flower.node.node import Node
from sfl_flower.wire.common import StaleReply
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeRequest


def forward(node: Node, request: ForwardRequest) -> ForwardReply | StaleReply:
    return ho_sfl.forward(node, request)


def probe(node: Node, request: ProbeRequest) -> SignReply | StaleReply:
    reply = ho_sfl.probe(node, request)
    if isinstance(reply, StaleReply):
        return reply
    signs = np.sign(reply.scalars).astype(np.int8)
    return SignReply(reply.round, signs, reply.samples)
