"""What crosses the network: typed messages, their codecs and the ledger."""

from __future__ import annotations

from sfl_flower.wire.hybrid import (
    AnchorRequest,
    ForwardReply,
    ForwardRequest,
    ProbeReply,
    ProbeRequest,
)
from sfl_flower.wire.ledger import CATEGORIES, Ledger, content_bytes
from sfl_flower.wire.messages import (
    JoinReply,
    JoinRequest,
    Reply,
    Request,
    Setup,
    StaleReply,
    Sync,
    expect_shape,
    is_stale,
)
from sfl_flower.wire.splitfed import StepReply, StepRequest
from sfl_flower.wire.weights import pack_state, state_bytes, unpack_state

__all__ = [
    "CATEGORIES",
    "AnchorRequest",
    "ForwardReply",
    "ForwardRequest",
    "JoinReply",
    "JoinRequest",
    "Ledger",
    "ProbeReply",
    "ProbeRequest",
    "Reply",
    "Request",
    "Setup",
    "StaleReply",
    "StepReply",
    "StepRequest",
    "Sync",
    "content_bytes",
    "expect_shape",
    "is_stale",
    "pack_state",
    "state_bytes",
    "unpack_state",
]
