"""Cutting a model in two, and finding what would break a client that only runs forwards."""

from __future__ import annotations

from sfl_flower.split.checks.checks import Problem, check_zeroth_order, freeze_batch_norm, problems
from sfl_flower.split.cut import Halves, cut, every_cut, legal_cuts
from sfl_flower.split.graph.half import Half
from sfl_flower.split.heads import HEADS, make_head
from sfl_flower.split.parameters.quantised import (
    dequantised,
    held_bytes,
    load_dequantised,
    parts,
    stay_frozen,
)
from sfl_flower.split.parameters.trained import TRAINED, check_trained, restrict
from sfl_flower.split.parameters.travelling import (
    base_digest,
    base_state,
    buffers_of,
    load_travelling,
    travelling_state,
)
from sfl_flower.split.whole import Whole

__all__ = [
    "HEADS",
    "TRAINED",
    "Half",
    "Halves",
    "Problem",
    "Whole",
    "base_digest",
    "base_state",
    "buffers_of",
    "check_trained",
    "check_zeroth_order",
    "cut",
    "dequantised",
    "every_cut",
    "freeze_batch_norm",
    "held_bytes",
    "legal_cuts",
    "load_dequantised",
    "load_travelling",
    "make_head",
    "parts",
    "problems",
    "restrict",
    "stay_frozen",
    "travelling_state",
]
