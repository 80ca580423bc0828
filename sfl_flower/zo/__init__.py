"""Zeroth-order engine: directions, probes, estimators, replayable optimisers, journal.

Needs torch and numpy, nothing of Flower.
"""

from __future__ import annotations

from sfl_flower.zo.clipping import clip_scalars
from sfl_flower.zo.coefficients import step_coefficients
from sfl_flower.zo.directions import Direction, Directions
from sfl_flower.zo.entry import Entry
from sfl_flower.zo.estimators import ESTIMATORS
from sfl_flower.zo.header import JournalHeader, manifest_digest, params_digest
from sfl_flower.zo.journal import Journal, Tail, decode_tail, tail_bytes
from sfl_flower.zo.keys import SHARED_STREAM, Key, client_stream, run_key, step_keys
from sfl_flower.zo.laws import LAWS
from sfl_flower.zo.optimizers import OPTIMIZERS, OptimizerSpec
from sfl_flower.zo.probing import Probing
from sfl_flower.zo.replica import Replica
from sfl_flower.zo.scalars import loss_scalars, surrogate_scalars
from sfl_flower.zo.vector import ParameterVector, trained_names
from sfl_flower.zo.walk import Walk

__all__ = [
    "ESTIMATORS",
    "LAWS",
    "OPTIMIZERS",
    "SHARED_STREAM",
    "Direction",
    "Directions",
    "Entry",
    "Journal",
    "JournalHeader",
    "Key",
    "OptimizerSpec",
    "ParameterVector",
    "Probing",
    "Replica",
    "Tail",
    "Walk",
    "client_stream",
    "clip_scalars",
    "decode_tail",
    "loss_scalars",
    "manifest_digest",
    "params_digest",
    "run_key",
    "step_coefficients",
    "step_keys",
    "surrogate_scalars",
    "tail_bytes",
    "trained_names",
]
