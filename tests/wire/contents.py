"""One example of every message, and random records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

from sfl_flower.wire import JoinReply, JoinRequest, Setup, StaleReply, Sync, Usage
from sfl_flower.wire.decomfl import WalkReply, WalkRequest
from sfl_flower.wire.downlink import block
from sfl_flower.wire.draft import Draft
from sfl_flower.wire.fedavg import FullReply, FullRequest
from sfl_flower.wire.fsl_sage import (
    FSLSAGERequest,
    FSLSAGEStaleReply,
    FSLSAGEUploadRequest,
    FSLSAGEWarmUpRequest,
)
from sfl_flower.wire.heron import HERONRequest
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeReply, ProbeRequest
from sfl_flower.wire.local import LocalReply, LocalRequest
from sfl_flower.wire.mu_splitfed import (
    MUForwardReply,
    MUForwardRequest,
    MUStepReply,
    MUStepRequest,
)
from sfl_flower.wire.secure import (
    SecureForwardReply,
    SecureForwardRequest,
    SecureProbeReply,
    SecureProbeRequest,
    UnmaskReply,
    UnmaskRequest,
)
from sfl_flower.wire.splitfed import StepReply, StepRequest
from sfl_flower.wire.u_shaped import TailReply, TailRequest, UnlabelledReply
from sfl_flower.wire.zo_sfl import ZOStepReply, ZOStepRequest
from sfl_flower.zo import Entry, Guide, Probing, Tail

JOINING = Setup(model_seed=7, partition="local", threads=1)
SETUP = replace(JOINING, key="0c" * 16)
Z = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 0], dtype=np.int64)
TEXTS = np.pad(np.ones((4, 2, 30), np.float32), ((0, 0), (0, 9), (0, 0)))
"""Smashed data of four texts of 2 positions, padded to 11."""
NONE = Sync("none", 3, "aa", 3, "aa")
ENTRIES = tuple(Entry(round, 0.1, (1, 4), 1, 1, np.ones((2, 1, 1), np.float32)) for round in (6, 7))
TAIL = Sync(
    "tail", 1, "0a" * 32, 3, "0b" * 32, Tail(1, 5, b"\n" * 32, b"\v" * 32, ENTRIES).encode()
)
"""Two entries of two scalars, for two streams."""
FULL = Sync(
    "full",
    0,
    "",
    3,
    "bb",
    state={
        "weights.float32": np.ones(5, np.float32),
        "slot.m": np.zeros(5, np.float32),
        "header": np.arange(9, dtype=np.uint8),
    },
)
WEIGHTS: dict[str, np.ndarray] = {
    "float32": np.ones(5, np.float32),
    "int64": np.array([3], np.int64),
}

MESSAGES: dict[str, Any] = {
    "join request": JoinRequest(JOINING),
    "join request with a base": JoinRequest(JOINING, "0f" * 16, True),
    "join request with a head": JoinRequest(JOINING, "0f" * 16, False, "blocks:block:3"),
    "join reply": JoinReply(2, 30, data="0af3"),
    "join request for moments": JoinRequest(JOINING, moments=True),
    "join reply with moments": JoinReply(2, 30, data="0af3", moments=np.ones(6, np.float32)),
    "join request for a key": JoinRequest(JOINING, secure=True),
    "join reply with a key": JoinReply(2, 30, data="0af3", key=b"\x07" * 32),
    "join problem": JoinReply(2, 0, "no data"),
    "stale": StaleReply(2, "ab"),
    "stale, none": StaleReply(-1, ""),
    "forward, none": ForwardRequest(4, 8, 2, SETUP, NONE),
    "forward, tail": ForwardRequest(4, 8, 1, SETUP, TAIL, "memory"),
    "forward, full": ForwardRequest(4, 8, 1, SETUP, FULL),
    "anchor": ForwardRequest(4, 8, 1, SETUP, NONE),
    "anchor with statistics": ForwardRequest(4, 8, 1, SETUP, NONE, statistics=WEIGHTS),
    "forward reply": ForwardReply(4, -1, Z, Y, np.array([1, 3], np.int64), Usage(99, 2)),
    "forward reply with statistics": ForwardReply(
        4, -1, Z, Y, np.array([1, 3], np.int64), statistics=WEIGHTS
    ),
    "forward reply, texts": ForwardReply(4, -1, TEXTS, Y, np.array([1, 3], np.int64)),
    "probe, texts": ProbeRequest(4, 8, 1, SETUP, TEXTS, 0, Probing(5, "gaussian")),
    "probe": ProbeRequest(4, 8, 1, SETUP, Z, 0, Probing(5, "gaussian", 1e-3, "central"), "flops"),
    "probe, guided": ProbeRequest(
        4, 8, 1, SETUP, Z, 0, Probing(5), guide=Guide(9, b"\x05\x01", np.ones(2, np.float32))
    ),
    "probe, sealed": ProbeRequest(4, 8, 1, SETUP, Z, 0, Probing(5), seal=bytes(range(16))),
    "probe, private": ProbeRequest(
        4, 8, 1, SETUP, Z, 0, Probing(5, clip=0.5, noise=2.0, channel=1)
    ),
    "probe, nopeek": ProbeRequest(4, 8, 1, SETUP, Z, 0, Probing(5, nopeek=0.5)),
    "probe, bounded": ProbeRequest(4, 8, 1, SETUP, Z, 0, Probing(5, clip=0.5)),
    "probe reply": ProbeReply(4, np.ones((1, 5), np.float32), 4, Usage(7, 2)),
    "probe reply, nopeek": ProbeReply(4, np.ones((1, 5), np.float32), 4, dcor=0.25),
    "secure forward": SecureForwardRequest(
        4, 8, 2, SETUP, NONE, holds=b"\x01" * 8, neighbours=np.ones((2, 32), np.uint8), opens=2
    ),
    "secure forward reply": SecureForwardReply(
        4,
        -1,
        Z,
        Y,
        np.array([1, 3], np.int64),
        mark=b"\x02" * 8,
        pairs=b"\x03" * 48,
        sent=np.ones((2, 48), np.uint8),
    ),
    "secure forward reply, lost": SecureForwardReply(
        4, -1, Z, Y, np.array([1, 3], np.int64), key=b"\x05" * 32
    ),
    "secure probe": SecureProbeRequest(
        4,
        8,
        1,
        SETUP,
        Z,
        0,
        Probing(5),
        dealt=b"\xc0",
        incoming=np.ones((2, 48), np.uint8),
        bits=30,
        limit=1e6,
        clip_norm=1.0,
        scale="none",
        weighed=True,
    ),
    "secure probe reply": SecureProbeReply(4, np.full((1, 5), 2**64 - 1, np.uint64), 4, Usage(7)),
    "unmask": UnmaskRequest(4, SETUP, b"\x80"),
    "unmask reply": UnmaskReply(4, np.ones((3, 16), np.uint8)),
    "forward, labels randomised": ForwardRequest(4, 8, 1, replace(SETUP, label_epsilon=2.0), NONE),
    "unlabelled reply": UnlabelledReply(4, -1, Z, np.array([1, 3], np.int64), Usage(99, 2)),
    "unlabelled reply of one mini-batch": UnlabelledReply(
        4, -1, Z, np.array([4], np.int64), statistics=WEIGHTS
    ),
    "tail": TailRequest(4, 8, 2, SETUP, Z, "tail:act2", "first", 64, WEIGHTS, "memory"),
    "tail, forwards": TailRequest(4, 8, 2, SETUP, Z, "tail:act2", "zeroth", 5, WEIGHTS),
    "tail reply": TailReply(4, 4, Z, WEIGHTS, np.array([0.5, 2.0]), Usage(7, 2)),
    "first step": StepRequest(4, 0, 2, 8, SETUP, "{}", False, weights=WEIGHTS),
    "later step": StepRequest(4, 1, 2, 8, SETUP, "{}", True, lam=Z, meter="memory"),
    "step reply": StepReply(4, 1, 4, Z, Y),
    "last step reply": StepReply(4, 2, 0, weights=WEIGHTS, usage=Usage(5, 7)),
    "full": FullRequest(4, 3, 8, SETUP, "{}", True, WEIGHTS, "flops"),
    "full reply": FullReply(4, 20, 0.5, WEIGHTS, Usage(5, 7)),
    "walk, none": WalkRequest(
        4, 3, Probing(5, "sphere", 1e-3, "central"), 8, SETUP, NONE, 0.1, "memory"
    ),
    "walk, private": WalkRequest(4, 3, Probing(5, clip=1.0, noise=4.0), 8, SETUP, NONE, 0.1),
    "walk, tail": WalkRequest(4, 3, Probing(5, "gaussian"), 8, SETUP, TAIL, 0.0),
    "walk, full": WalkRequest(4, 3, Probing(5), 8, SETUP, FULL, 0.1),
    "walk reply": WalkReply(4, -1, np.ones((3, 5), np.float32), 20, 0.5, Usage(7, 2)),
    "cse-fsl": LocalRequest(
        4,
        3,
        2,
        8,
        SETUP,
        "linear",
        "{}",
        True,
        WEIGHTS,
        {"float32": np.ones(2, np.float32)},
        "flops",
    ),
    "heron": HERONRequest(
        4,
        3,
        2,
        8,
        SETUP,
        "pooled:2",
        "{}",
        False,
        WEIGHTS,
        {"float32": np.ones(2, np.float32)},
        "memory",
        probing=Probing(5, "sphere", 1e-2, "central"),
        uplink="scalars",
        trains="client",
    ),
    "heron, guided": HERONRequest(
        4,
        3,
        2,
        8,
        SETUP,
        "linear",
        "{}",
        False,
        WEIGHTS,
        probing=Probing(5),
        uplink="scalars",
        trains="client",
        guide=Guide(9, b"\x05\x01", np.ones(2, np.float32)),
        guide_rest=0.25,
    ),
    "heron, spread": HERONRequest(
        4,
        3,
        2,
        8,
        SETUP,
        "linear",
        "{}",
        True,
        WEIGHTS,
        {},
        "none",
        probing=Probing(5),
        uplink="scalars",
        trains="client",
        clip_norm=0.5,
        scale="spread",
        cone=0.25,
        walk=True,
    ),
    "heron, nopeek": HERONRequest(
        4, 3, 2, 8, SETUP, "linear", "{}", False, WEIGHTS, probing=Probing(5, nopeek=0.5)
    ),
    "heron, followed": HERONRequest(
        4,
        3,
        2,
        8,
        SETUP,
        "linear",
        "{}",
        False,
        {},
        {},
        downlink="scalars",
        head_downlink="int8",
        holds="ab" * 16,
        base="cd" * 16,
        changes=block("head", b"\x00" * 5),
        probing=Probing(5),
        uplink="scalars",
        trains="client",
    ),
    "probe, stacked": ProbeRequest(
        4, 8, 1, SETUP, Z, 0, Probing(5, "rank_one", 1e-3, "central", stack=4)
    ),
    "fsl-sage upload": FSLSAGEUploadRequest(4, 3, 2, 8, SETUP, "linear", "{}", False, WEIGHTS),
    "fsl-sage, held": FSLSAGERequest(
        4, 3, 2, 8, SETUP, "linear", "{}", True, {}, {}, "flops", digest="ab", ahead=True
    ),
    "fsl-sage, head": FSLSAGERequest(
        4,
        3,
        2,
        8,
        SETUP,
        "linear",
        "{}",
        False,
        WEIGHTS,
        {"float32": np.ones(2, np.float32)},
        digest="ab",
    ),
    "fsl-sage, followed": FSLSAGERequest(
        4,
        3,
        2,
        8,
        SETUP,
        "linear",
        "{}",
        False,
        downlink="int8",
        head_downlink="int4",
        holds="ab" * 16,
        base="cd" * 16,
        weights={},
        digest="ef" * 16,
        head_base="0a" * 16,
        head_changes=block("head", b"\x00" * 5),
    ),
    "fsl-sage, stale": FSLSAGEStaleReply(2, "ab", "cd"),
    "fsl-sage warm-up": FSLSAGEWarmUpRequest(
        4, 3, 2, 8, SETUP, "linear", "{}", False, WEIGHTS, {"float32": np.ones(2, np.float32)}
    ),
    "local reply, nothing sent": LocalReply(
        4, 20, Z[:0], Y[:0], np.zeros(0, np.int64), 0.5, WEIGHTS
    ),
    "local reply, weights": LocalReply(
        4,
        20,
        Z,
        Y,
        np.array([1, 3], np.int64),
        0.5,
        WEIGHTS,
        {"float32": np.ones(2, np.float32)},
        usage=Usage(5, 7),
    ),
    "local reply, scalars": LocalReply(
        4,
        20,
        Z,
        Y,
        np.array([1, 3], np.int64),
        -0.5,
        {"int64": np.array([3], np.int64)},
        scalars=np.ones((3, 5), np.float32),
        taken=np.array([1, 0, 1], np.uint8),
        dcor=0.25,
    ),
    "three forwards": MUForwardRequest(
        4, 8, SETUP, Probing(1, "sphere", 1e-3, "central"), WEIGHTS, "memory"
    ),
    "three forwards reply": MUForwardReply(4, Z, Z + 1, Z - 1, Y, Usage(99, 2)),
    "one scalar": MUStepRequest(
        4, SETUP, Probing(1, "sphere"), 0.5, np.ones(1, np.float32), "flops"
    ),
    "one scalar reply": MUStepReply(4, WEIGHTS, Usage(5, 7)),
    "first zo step": ZOStepRequest(
        4, 0, 2, 8, SETUP, Probing(1, "sphere", 0.1, "central"), "{}", False, WEIGHTS
    ),
    "later zo step": ZOStepRequest(
        4,
        1,
        2,
        8,
        SETUP,
        Probing(3, "gaussian", 1e-3, "central"),
        "{}",
        True,
        {},
        Z[0],
        "memory",
    ),
    "zo step reply": ZOStepReply(4, 1, 2, Z, Y[:2]),
    "last zo step reply": ZOStepReply(4, 2, 0, weights=WEIGHTS, usage=Usage(5, 7)),
}


def booked(message: Any) -> dict[str, int]:
    """Return the bytes by category of a message that is written."""
    found: dict[str, int] = message.draft().booked
    return found


def pack(
    arrays: dict[str, np.ndarray],
    config: dict[str, Any] | None = None,
    metrics: dict[str, int] | None = None,
) -> RecordDict:
    """Return a content with these entries; arrays go without their padding, as labels do."""
    draft = Draft()
    for name, value in arrays.items():
        draft.samples(name, value, "labels" if name == "y" else "")
    for setting in (config or {}).items():
        draft.setting(*setting)
    for metric in (metrics or {}).items():
        draft.metric(*metric)
    return draft.content()


KINDS = sorted({type(message) for message in MESSAGES.values()}, key=lambda kind: kind.__name__)

NAMES = st.sampled_from(
    """z z.lengths y sizes lam lam.lengths scalars taken tail weights.float32 head.float32
    state.header other""".split()
)
DTYPES = st.sampled_from(["float32", "int64", "uint8", "float64", "object", "nonsense", ""])
DIMENSIONS = st.lists(
    st.integers(-3, 5) | st.sampled_from([10**12, -(10**12), 2**31 - 1]), max_size=4
)
HEADERS = st.builds(
    lambda text, size: b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text,
    st.binary(max_size=80)
    | st.sampled_from(
        [
            b"(" * 3000,
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }" + b" " * 59 + b"\n",
            b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }" + b" " * 60 + b"\n",
            b"{'descr': [('a', '<f4', 10**9)], 'fortran_order': False, 'shape': (1L,), }\n",
        ]
    ),
    st.integers(0, 2**16 - 1),
)


def _array(value: Any) -> Array:
    return Array(value)


ARRAYS = st.one_of(
    st.builds(
        Array,
        dtype=DTYPES,
        shape=DIMENSIONS.map(tuple),
        stype=st.sampled_from(["numpy.ndarray", "torch", ""]),
        data=st.binary(max_size=60) | HEADERS,
    ),
    st.sampled_from(
        [Z, Y, Z[:0], np.array([np.nan], np.float32), np.ones((2, 2, 2, 2), np.float32)]
    ).map(_array),
)
WORDS = st.sampled_from(
    """protocol status round version digest sync base-version base-digest partition model-seed key
    threads batch-size minibatches eval-mode meter stream probes law mu estimator step steps
    optimizer keep-state partition-id problem z.positions lam.positions other""".split()
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-2, 8),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["ok", "stale", "none", "tail", "full", "local"]),
    st.lists(st.integers(0, 9), max_size=2),
    st.binary(max_size=4),
)
METRICS = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.lists(st.integers(0, 9), max_size=2)


def records(names: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[RecordDict]:
    """Return record dicts with configs from `names`, and anything in the arrays and metrics."""
    return st.builds(
        lambda arrays, config, metrics: RecordDict(
            {
                "arrays": ArrayRecord(arrays),
                "config": ConfigRecord(config),
                "metrics": MetricRecord(metrics),
            }
        ),
        st.dictionaries(NAMES, ARRAYS, max_size=4),
        names,
        st.dictionaries(st.sampled_from(["num-examples", "peak-bytes", "flops", "other"]), METRICS),
    )
