"""Padding stays off the wire, and what arrives is what was sent, to the bit."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import WireError
from sfl_flower.training.measures import IGNORED
from sfl_flower.wire import Ledger, content_bytes
from sfl_flower.wire.draft import Draft
from sfl_flower.wire.ho_sfl import ForwardReply, ProbeRequest
from sfl_flower.wire.local import LocalReply
from sfl_flower.wire.mu_splitfed import MUForwardReply
from sfl_flower.wire.padding import PADDINGS, restore, shorten
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.splitfed import StepReply, StepRequest
from sfl_flower.wire.zo_sfl import ZOStepReply
from sfl_flower.zo import Probing
from tests.local_grid import changed, roundtrip, serde
from tests.wire.contents import SETUP, booked, pack

N, T, H = 3, 10, 16
Y = np.zeros(N, np.int64)
SIZES = np.array([1, 2], np.int64)


def texts(lengths: tuple[int, ...], positions: int = T, width: int = H) -> np.ndarray:
    """Return smashed data of texts of these lengths, without a zero before their ends."""
    z = np.zeros((len(lengths), positions, width), np.float32)
    for sample, length in enumerate(lengths):
        z[sample, :length] = 1 + sample + np.arange(length * width).reshape(length, width)
    return z


Z = texts((4, 0, 2))


def sent_bytes(name: str, value: np.ndarray) -> int:
    """Return the bytes that are booked for an array of smashed data or labels."""
    draft = Draft()
    draft.samples(name, value, "smashed" if name == "z" else "labels")
    return sum(draft.booked.values())


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


def sent(z: np.ndarray) -> RecordDict:
    return roundtrip(pack({"z": z}))


def arrived(content: RecordDict) -> np.ndarray:
    reader = Reader(content, "test")
    z = reader.samples("z", "smashed")
    reader.done()
    return z


def test_the_rows_of_each_text_travel_and_their_number() -> None:
    content = sent(Z)
    reader = Reader(content, "test")
    rows = reader.array("z", "float32", shape=(6, H))
    assert np.array_equal(rows, np.concatenate([Z[0, :4], Z[2, :2]]))
    assert reader.array("z.lengths", "uint8").tolist() == [4, 0, 2]
    assert reader.integer("z.positions") == T
    assert bits(arrived(content)) == bits(Z)
    assert not arrived(content).flags.writeable
    assert sent_bytes("z", Z) == 6 * H * 4 + N


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_zeros_come_back_to_the_bit(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, most)) for most in (4, 300, 40))
    lengths = data.draw(st.lists(st.integers(0, shape[1]), min_size=shape[0], max_size=shape[0]))
    z = texts(tuple(lengths), shape[1], shape[2])
    spots = st.tuples(*(st.integers(0, size - 1) for size in shape))
    for spot in data.draw(st.lists(spots, max_size=4)):
        z[spot] = data.draw(st.sampled_from([0.0, -0.0, 1e-45, -3.5]))
    for message in (z, z[:, ::-1], np.asfortranarray(z)):
        back = arrived(sent(message))
        assert (back.dtype, back.shape, bits(back)) == (z.dtype, z.shape, bits(message))
        content = pack({"z": message})
        Ledger().record("up", {"smashed": sent_bytes("z", message)}, content_bytes(content))
        assert content_bytes(content) <= content_bytes(pack({"z": message[None]}))


def test_a_row_of_negative_zeros_is_no_padding() -> None:
    z = texts((5, 5, 5))
    z[0, 8, 3] = -0.0
    content = sent(z)
    assert Reader(content, "test").array("z.lengths", "uint8").tolist() == [9, 5, 5]
    assert bits(arrived(content)) == bits(z)


@pytest.mark.parametrize(
    "z",
    [
        texts((T, T, T)),  # no padding
        texts((T, T - 1, T)),  # less padding than a second array costs
        Z.reshape(N, -1),
        Z.reshape(N, T, 4, 4),
        Z.astype(np.float64),
        Z[:0],
    ],
)
def test_what_would_save_nothing_travels_as_it_is(z: np.ndarray) -> None:
    content = pack({"z": z})
    assert (list(content["arrays"]), list(content["config"])) == (["z"], ["protocol"])
    assert content.array_records["arrays"]["z"].data[-z.nbytes :] == bits(z) or not z.size
    assert shorten("z", z) is None
    assert sent_bytes("z", z) == z.nbytes


def test_it_is_left_out_from_the_first_byte_that_it_saves() -> None:
    # A second array costs its name, a setting of 8 bytes and its name; Flower's encoding 48 more.
    cost = 8 + len("zz") + len(".lengths") + len(".positions") + 1
    smallest = None
    for width in range(1, 64):
        z = texts((1,), 2, width)
        packed = pack({"z": z})
        plain = content_bytes(pack({"z": z.reshape(1, -1)}))
        saved = 4 * width - cost if "z.lengths" in packed["arrays"] else 0
        assert content_bytes(packed) == plain - saved
        if smallest is None and "z.lengths" in packed["arrays"]:
            smallest = 4 * width
    assert smallest == (cost + 48) // 4 * 4 + 4


MESSAGES: dict[str, tuple[Any, tuple[str, ...], dict[str, int]]] = {
    "forward reply": (ForwardReply(1, 0, Z, Y, SIZES), ("z",), {"smashed": 1, "labels": 0}),
    "probe": (
        ProbeRequest(4, 8, 1, SETUP, Z, 0, Probing(5, "gaussian")),
        ("lam",),
        {"gradients": 1},
    ),
    "step": (StepRequest(4, 1, 2, 8, SETUP, "{}", True, lam=Z), ("lam",), {"gradients": 1}),
    "step reply": (StepReply(4, 1, N, Z, Y), ("z",), {"smashed": 1}),
    "zo step reply": (ZOStepReply(4, 1, 2, np.concatenate([Z, Z]), Y), ("z",), {"smashed": 2}),
    "local reply": (LocalReply(4, 20, Z, Y, SIZES, 0.5), ("z",), {"smashed": 1}),
    "three forwards": (
        MUForwardReply(4, Z, 2 * Z, 3 * Z, Y),
        ("anchor", "plus", "minus"),
        {"smashed": 3},
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_with_smashed_data_leaves_it_out(name: str) -> None:
    message, fields, payload = MESSAGES[name]
    content = roundtrip(message.to_content())
    back = type(message).from_content(content)
    for field in fields:
        assert f"{field}.lengths" in content["arrays"]
        assert bits(getattr(back, field)) == bits(getattr(message, field))
    for side in (message, back):
        found = booked(side)
        for category, times in payload.items():
            if times:
                assert found[category] == times * (6 * H * 4 + N)
        ledger = Ledger()
        ledger.record("up", found, content_bytes(content))
        # Names, headers, settings: what is left does not grow with what travels.
        assert 0 < ledger.up["control"] < 1600


@pytest.mark.parametrize("name", MESSAGES)
def test_the_bytes_booked_are_flowers_up_to_its_envelope(name: str) -> None:
    if serde is None:
        pytest.skip("this Flower keeps its encoding elsewhere")
    content = MESSAGES[name][0].to_content()
    encoded = int(serde.recorddict_to_proto(content).ByteSize())
    entries = sum(len(record) for record in content.values())
    assert 0 < encoded - content_bytes(content) <= 20 * entries + 60


def test_a_long_batch_costs_what_its_texts_cost() -> None:
    """32 texts of 128 positions and 384 values, of which 16 on average are written."""
    draw = np.random.Generator(np.random.Philox(key=3))
    lengths = draw.integers(4, 29, 32)
    z = texts(tuple(lengths.tolist()), 128, 384)
    reply = ForwardReply(1, 0, z, np.zeros(32, np.int64), np.array([32], np.int64))
    content = reply.to_content()
    assert booked(reply)["smashed"] == int(lengths.sum()) * 384 * 4 + 32
    assert content_bytes(content) < z.nbytes / 7


LIES: list[tuple[str, dict[str, Any], str]] = [
    ("rows", {"arrays": {"z": np.zeros((7, H), np.float32)}}, "of 7 rows for samples of 6"),
    ("no rows", {"arrays": {"z": np.zeros((0, H), np.float32)}}, "of 0 rows for samples of 6"),
    ("flat rows", {"arrays": {"z": np.zeros(96, np.float32)}}, "expected 2 dimensions"),
    ("dtype", {"arrays": {"z": np.zeros((6, H))}}, "'z' as float64"),
    ("lengths", {"arrays": {"z.lengths": np.array([4, 1, 2], np.uint8)}}, "for samples of 7"),
    ("fewer", {"arrays": {"z.lengths": np.array([4], np.uint8)}}, "for samples of 4"),
    ("none", {"arrays": {"z.lengths": np.zeros(0, np.uint8)}}, "for samples of 0"),
    ("too long", {"arrays": {"z.lengths": np.array([0, 11, 2], np.uint8)}}, "a sample of 11 rows"),
    ("wide", {"arrays": {"z.lengths": np.array([4, 0, 2], np.uint16)}}, "'z.lengths' as uint16"),
    ("signed", {"arrays": {"z.lengths": np.array([7, -3, 2], np.int8)}}, "'z.lengths' as int8"),
    ("float", {"arrays": {"z.lengths": np.array([4, 0, 2], np.float32)}}, "as float32"),
    ("pairs", {"arrays": {"z.lengths": np.array([[4], [0], [2]], np.uint8)}}, "1 dimensions"),
    ("gone", {"arrays": {"z.lengths": None}}, "unknown entries: z.positions"),
    ("no T", {"config": {"z.positions": None}}, "lacks the setting 'z.positions'"),
    ("T = 0", {"config": {"z.positions": 0}}, "z.positions=0, expected a whole number"),
    ("T < 0", {"config": {"z.positions": -1}}, "z.positions=-1, expected a whole number"),
    ("T text", {"config": {"z.positions": "10"}}, "expected a whole number"),
    ("T short", {"config": {"z.positions": 3}}, "a sample of 4 rows, at most 3 are possible"),
    (
        "NaN",
        {"arrays": {"z": np.full((6, H), np.nan, np.float32)}},
        "a value in 'z' that is not finite",
    ),
]


@pytest.mark.parametrize(("what", "change", "says"), LIES)
def test_each_lie_is_refused(what: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(WireError, match=says):
        arrived(changed(sent(Z), **change))


BOMBS: dict[str, tuple[tuple[int, int], np.ndarray, int]] = {
    "positions": ((1, H), np.array([1], np.uint32), 2**31 - 1),
    "samples": ((0, H), np.zeros(100_000, np.uint16), 60_000),
    "width": ((0, 2**20), np.zeros(3, np.uint16), 1000),
    "nothing wide": ((0, 0), np.zeros(100_000, np.uint16), 60_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_is_allocated_from_what_lengths_declare(name: str) -> None:
    shape, lengths, positions = BOMBS[name]
    content = changed(
        sent(Z),
        arrays={"z": np.zeros(shape, np.float32), "z.lengths": lengths},
        config={"z.positions": positions},
    )
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="more than the 2147483647 bytes that are read"):
            arrived(content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_is_within_the_limit_is_put_back() -> None:
    rows, lengths = np.ones((2, 3), np.float32), np.array([0, 2], np.uint8)
    padding = PADDINGS["float32"]
    whole = restore(rows, lengths, 4, replace(padding, most=96))
    assert isinstance(whole, np.ndarray)
    assert whole[:, :, 0].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    assert restore(rows, lengths, 4, replace(padding, most=95)) == (
        "that stands for (2, 4, 3), more than the 95 bytes that are read"
    )


def test_lengths_do_not_stand_in_for_a_check_of_the_batch() -> None:
    message, *_ = MESSAGES["forward reply"]
    short: dict[str, Any] = {"z": Z[0, :4], "z.lengths": np.array([4], np.uint8)}
    with pytest.raises(WireError, match=r"smashed data of shape \(1, 10, 16\) with labels of"):
        ForwardReply.from_content(changed(message.to_content(), arrays=short))


LABELS = np.full((N, 40), IGNORED, np.int64)
"""Labels of texts of 4, 0 and 2 positions, the first of which counts at two of them alone."""
LABELS[0, [1, 3]], LABELS[2, :2] = (7, 0), (5, 6)


def labels_of(content: RecordDict) -> np.ndarray:
    reader = Reader(content, "test")
    y = reader.samples("y", "labels")
    reader.done()
    return y


def test_labels_travel_up_to_the_last_that_counts() -> None:
    content = roundtrip(pack({"y": LABELS}))
    reader = Reader(content, "test")
    found = reader.array("y", "int8", shape=(6,))
    assert found.tolist() == [IGNORED, 7, IGNORED, 0, 5, 6]
    assert reader.array("y.lengths", "uint8").tolist() == [4, 0, 2]
    assert reader.integer("y.positions") == 40
    assert np.array_equal(labels_of(content), LABELS)
    assert not labels_of(content).flags.writeable
    assert sent_bytes("y", LABELS) == 6 + N


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_labels_come_back(data: st.DataObject) -> None:
    n, positions = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))
    y = np.full((n, positions), IGNORED, np.int64)
    for sample in range(n):
        values = st.sampled_from([IGNORED, 0, 1, -1, 2**63 - 1, -(2**63)])
        some = data.draw(st.lists(values, max_size=min(positions, 9)))
        start = data.draw(st.integers(0, positions - len(some)))
        y[sample, start : start + len(some)] = some
    for labels in (y, y[:, ::-1], np.asfortranarray(y)):
        if (short := shorten("y", labels)) is not None:
            back = restore(short.rows, short.lengths, short.positions, PADDINGS["int64"])
            assert isinstance(back, np.ndarray)
            assert (back.dtype, back.shape, bits(back)) == (y.dtype, y.shape, bits(labels))
        content = pack({"y": labels})
        assert bits(labels_of(roundtrip(content))) == bits(labels)
        Ledger().record("up", {"labels": sent_bytes("y", labels)}, content_bytes(content))
        assert content_bytes(content) <= content_bytes(pack({"y": labels[None]}))


@pytest.mark.parametrize(
    "y",
    [
        np.full(400, IGNORED, np.int64),  # a label a sample
        np.full((20, 20, 1), IGNORED, np.int64),
        np.full((20, 20), 0, np.int64),
        np.full((2, 2**22 + 1), IGNORED, np.int64),  # more than 64 MiB
    ],
)
def test_labels_that_have_no_padding_travel_as_they_are(y: np.ndarray) -> None:
    assert shorten("y", y) is None
    assert sent_bytes("y", y) == y.size


@pytest.mark.parametrize("name", ["forward reply", "step reply", "zo step reply", "local reply"])
def test_every_message_with_labels_leaves_their_padding_out(name: str) -> None:
    message = replace(MESSAGES[name][0], y=LABELS)
    content = roundtrip(message.to_content())
    back = type(message).from_content(content)
    assert np.array_equal(back.y, LABELS)
    for side in (message, back):
        assert booked(side)["labels"] == 6 + N
        assert booked(side)["smashed"] == booked(message)["smashed"]
        ledger = Ledger()
        ledger.record("up", booked(side), content_bytes(content))
        assert 0 < ledger.up["control"] < 1600


LABEL_LIES: list[tuple[dict[str, Any], str]] = [
    ({"arrays": {"y": np.zeros((6, 1), np.int64)}}, "expected 1 dimensions"),
    ({"arrays": {"y": np.zeros(7, np.int64)}}, "of 7 rows for samples of 6"),
    ({"arrays": {"y": np.zeros(6, np.float32)}}, "'y' as float32"),
    ({"arrays": {"y.lengths": np.array([41, 0, 2], np.uint8)}}, "a sample of 41 rows, at most 40"),
    ({"config": {"y.positions": 2**22}}, "'y.lengths' as uint8"),
    (
        {
            "arrays": {"y.lengths": np.array([4, 0, 2], np.uint32)},
            "config": {"y.positions": 2**22},
        },
        "more than the 8388608 bytes that are read",
    ),
]


@pytest.mark.parametrize(("change", "says"), LABEL_LIES)
def test_lies_about_labels_are_refused_before_they_are_written(
    change: dict[str, Any], says: str
) -> None:
    content = changed(roundtrip(pack({"y": LABELS})), **change)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=says):
            labels_of(content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
