from __future__ import annotations

import re
from dataclasses import fields
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Array, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import WireError
from sfl_flower.wire import CATEGORIES, StaleReply, Sync, content_bytes, is_stale
from sfl_flower.wire.common import JoinRequest
from sfl_flower.wire.draft import PROTOCOL
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeReply
from sfl_flower.wire.message import Part
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.splitfed import StepReply, StepRequest
from sfl_flower.zo import Probing
from tests.local_grid import changed, roundtrip, values
from tests.wire.contents import KINDS, MESSAGES, SCALARS, WORDS, Z, booked, records

pytestmark = pytest.mark.flower


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, Sync):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_comes_back_through_flowers_encoding(name: str) -> None:
    message = MESSAGES[name]
    back = type(message).from_content(roundtrip(message.to_content()))
    for field in fields(message):
        assert same(getattr(message, field.name), getattr(back, field.name)), field.name


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_booked_when_it_is_read_is_what_was_booked_when_it_was_written(name: str) -> None:
    draft = MESSAGES[name].draft()
    content = roundtrip(draft.content())
    reader = Reader(content, "test")
    type(MESSAGES[name]).from_reader(reader)
    assert reader.booked == draft.booked
    assert all(draft.booked.values()) and set(draft.booked) <= set(CATEGORIES) - {"control"}
    assert sum(draft.booked.values()) < content_bytes(content)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_one_record_of_each_kind(name: str) -> None:
    content = MESSAGES[name].to_content()
    kinds = (content.array_records, content.config_records, content.metric_records)
    assert [list(kind) for kind in kinds] == [["arrays"], ["config"], ["metrics"]]


def may_be_missing(part: Any) -> set[str]:
    """Return names of entries without which a message means something else that is legal."""
    found = {"protocol"} if getattr(part, "SPOKEN", False) else set()
    for field in type(part)._fields():
        if isinstance(value := getattr(part, field.attribute), Part):
            found |= may_be_missing(value)
        elif isinstance(value, Probing):
            found |= {"stack", "channel"}
        elif field.optional or field.codec.implied or isinstance(field.default, (int, float, str)):
            found.add(field.name)
    return found


@pytest.mark.parametrize("name", MESSAGES)
def test_a_missing_or_foreign_entry_is_refused(name: str) -> None:
    message = MESSAGES[name]
    content = message.to_content()
    names = [("arrays", k) for k in content["arrays"]] + [("config", k) for k in content["config"]]
    # How many arrays there are is checked against the model, and against what was asked.
    groups = ("state.", "weights.", "head.", "statistics.")
    optional = may_be_missing(message)
    for record, key in names:
        change: Any = {record: {key: None}}
        try:
            type(message).from_content(changed(content, **change))
        except WireError:
            continue
        assert key in optional or (record == "arrays" and key.startswith(groups)), key
    with pytest.raises(WireError, match="unknown entries: foreign"):
        type(message).from_content(changed(content, config={"foreign": 1}))
    with pytest.raises(WireError, match="unknown entries: foreign"):
        type(message).from_content(changed(content, arrays={"foreign": Z}))
    with pytest.raises(WireError, match="protocol version 5"):
        type(message).from_content(changed(content, config={"protocol": PROTOCOL + 1}))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_records_raise_wire_errors_only(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    content = data.draw(records(st.dictionaries(WORDS, SCALARS, max_size=8)))
    with pytest.raises(WireError):
        kind.from_content(content)
    assert content_bytes(content) >= 0
    assert isinstance(is_stale(content), bool)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_message_raises_wire_errors_only(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(list(MESSAGES.values())))
    content = message.to_content()
    noise = data.draw(records(st.dictionaries(st.sampled_from(list(content["config"])), SCALARS)))
    for record in ("arrays", "config", "metrics"):
        names = list(noise[record])
        for name in data.draw(st.lists(st.sampled_from(names))) if names else []:
            content[record][name] = noise[record][name]
    try:
        back = type(message).from_content(content)
    except WireError:
        return
    assert isinstance(back, type(message))
    assert content_bytes(content) >= sum(booked(back).values())


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_c1_bytes_of_an_array_raise_wire_errors_only(data: st.DataObject) -> None:
    """Any byte of any array of any message: in its header, in its values, cut off or added."""
    message = data.draw(st.sampled_from([m for m in MESSAGES.values() if m.to_content()["arrays"]]))
    content = message.to_content()
    name = data.draw(st.sampled_from(sorted(content["arrays"])))
    array = content["arrays"][name]
    at = data.draw(st.integers(0, len(array.data)))
    cut = data.draw(st.integers(0, 8))
    piece = data.draw(st.binary(max_size=8) | st.sampled_from([b"'\xff\xff\xff'", b"\xff" * cut]))
    array.data = array.data[:at] + piece + array.data[at + cut :]
    try:
        back = type(message).from_content(content)
    except WireError:
        return
    assert isinstance(back, type(message))


@pytest.mark.parametrize("name", MESSAGES)
def test_c1_a_byte_that_is_not_utf8_is_refused_in_every_message(name: str) -> None:
    draft = MESSAGES[name].draft()
    content = draft.content()
    for key, array in content["arrays"].items():
        headed = Array(values(array))
        headed.data = re.sub(rb"'[<|][fiu].'", b"'\xff\xff\xff'", headed.data, count=1)
        content["arrays"][key] = headed
        with pytest.raises(WireError, match=f"has '{key}' whose bytes do not match"):
            type(MESSAGES[name]).from_content(content)
        content["arrays"][key] = array


def test_c1_whatever_reading_provokes_is_a_wire_error() -> None:
    content = MESSAGES["probe reply"].to_content()
    with patch.object(ProbeReply, "check", side_effect=OverflowError("too large")):
        with pytest.raises(
            WireError, match=r"A probe reply message cannot be read \(OverflowError: too large\)"
        ):
            ProbeReply.from_content(content)


def test_an_empty_record_dict_is_refused_by_every_message() -> None:
    for kind in KINDS:
        with pytest.raises(WireError, match="lacks the record"):
            kind.from_content(RecordDict())
    assert not is_stale(RecordDict())


def refused(name: str, says: str, **change: Any) -> None:
    message = MESSAGES[name]
    with pytest.raises(WireError, match=says):
        type(message).from_content(changed(message.to_content(), **change))


def test_batches_must_fit_one_another() -> None:
    refused("forward reply", "labels of shape", arrays={"y": np.zeros(3, np.int64)})
    refused("forward reply", "labels of shape", arrays={"z": np.zeros(4, np.float32)})
    refused("forward reply", "mini-batches of", arrays={"sizes": np.array([4, 1], np.int64)})
    refused("forward reply", "mini-batches of", arrays={"sizes": np.array([5, -1], np.int64)})
    refused("forward reply", "mini-batches of", arrays={"sizes": np.zeros(0, np.int64)})
    # The sum of these wraps around to 4.
    wrapping = np.array([2**63 - 1, 2**63 - 1, 6], np.int64)
    refused("forward reply", "mini-batches of", arrays={"sizes": wrapping})
    no_labels = {"y": np.zeros((4, 0), np.int64)}
    refused("forward reply", "labels of shape", arrays=no_labels)
    nothing = {"z": Z[:0], "y": np.zeros(0, np.int64), "sizes": np.zeros(0, np.int64)}
    refused("forward reply", "smashed data of shape", arrays=nothing)
    refused("step reply", "labels of shape", arrays={"y": np.zeros(3, np.int64)})


def test_a_step_brings_weights_first_and_a_cut_gradient_later() -> None:
    says = "weights at step 0 and a cut gradient at later steps"
    refused("first step", says, arrays={"weights.float32": None, "weights.int64": None})
    refused("first step", says, arrays={"lam": Z})
    refused("later step", says, arrays={"lam": None})
    refused("later step", r"step=3, expected a whole number in \[0, 2\]", config={"step": 3})


def test_a_sync_of_an_unknown_kind_is_refused() -> None:
    refused("forward, none", "expected one of none, tail, full", config={"sync": "later"})
    refused("forward, none", "expected at most 64 bytes", config={"digest": "../../x"})
    refused("forward, none", "unknown entries: tail", arrays={"tail": np.zeros(3, np.uint8)})
    refused("forward, tail", "'tail' as float32", arrays={"tail": np.zeros(3, np.float32)})


def test_what_counts_as_stale() -> None:
    assert is_stale(StaleReply(1, "ab").to_content())
    assert not is_stale(MESSAGES["forward reply"].to_content())


def test_payloads_are_the_bytes_of_the_arrays() -> None:
    expected: dict[str, dict[str, int]] = {
        "forward, none": {},
        "forward, tail": {"scalars": 16, "keys": 16},
        "forward, full": {"weights": 40},
        "forward reply": {"smashed": 48, "labels": 4},
        "forward reply, texts": {"smashed": 4 * 2 * 30 * 4 + 4, "labels": 4},
        "probe": {"gradients": 48},
        "probe, texts": {"gradients": 4 * 2 * 30 * 4 + 4},
        "probe reply": {"scalars": 20},
        "first step": {"weights": 28},
        "later step": {"gradients": 48},
        "step reply": {"smashed": 48, "labels": 4},
        "last step reply": {"weights": 28},
        "cse-fsl": {"weights": 28, "auxiliary": 8},
        "heron": {"weights": 28, "auxiliary": 8},
        "local reply, weights": {
            "smashed": 48,
            "labels": 4,
            "weights": 28,
            "auxiliary": 8,
        },
        "local reply, scalars": {
            "smashed": 48,
            "labels": 4,
            "scalars": 60,
            "weights": 8,
        },
        "join request": {},
        "join reply": {},
        "stale": {},
    }
    assert {name: booked(MESSAGES[name]) for name in expected} == expected


def test_message_types_are_legal_in_flower() -> None:
    assert ForwardRequest.message_type("ho_sfl") == "train.ho_sfl_forward"
    assert StepRequest.message_type("zo_sfl") == "train.zo_sfl_step"
    assert JoinRequest.message_type("ho_sfl") == "query.join"
    for kind in (ForwardReply, ProbeReply, StepReply):
        assert not hasattr(kind, "ACTION")
