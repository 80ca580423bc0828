"""What crosses the network: typed messages, their codecs and the ledger."""

from __future__ import annotations

from sfl_flower.wire.answer import check_answer
from sfl_flower.wire.common import (
    JoinReply,
    JoinRequest,
    Setup,
    StaleReply,
    Sync,
    is_stale,
)
from sfl_flower.wire.decomfl import WalkReply, WalkRequest
from sfl_flower.wire.fedavg import FullReply, FullRequest
from sfl_flower.wire.heron import UPLINKS, WALKS, HERONRequest
from sfl_flower.wire.ho_sfl import (
    ForwardReply,
    ForwardRequest,
    ProbeReply,
    ProbeRequest,
)
from sfl_flower.wire.ledger import CATEGORIES, Ledger, content_bytes
from sfl_flower.wire.local import LocalReply, LocalRequest
from sfl_flower.wire.message import Reply, Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.splitfed import StepReply, StepRequest
from sfl_flower.wire.usage import METERS, NO_USAGE, Usage
from sfl_flower.wire.weights import pack_state, state_bytes, unpack_state

__all__ = [
    "CATEGORIES",
    "METERS",
    "NO_USAGE",
    "UPLINKS",
    "WALKS",
    "ForwardReply",
    "ForwardRequest",
    "FullReply",
    "FullRequest",
    "HERONRequest",
    "JoinReply",
    "JoinRequest",
    "Ledger",
    "LocalReply",
    "LocalRequest",
    "ProbeReply",
    "ProbeRequest",
    "Reader",
    "Reply",
    "Request",
    "Setup",
    "StaleReply",
    "StepReply",
    "StepRequest",
    "Sync",
    "Usage",
    "WalkReply",
    "WalkRequest",
    "check_answer",
    "content_bytes",
    "is_stale",
    "pack_state",
    "state_bytes",
    "unpack_state",
]
