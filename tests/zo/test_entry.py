from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo import Entry, Guide, Key
from sfl_flower.zo.entry import MAX_COEFFICIENT, MAX_COEFFICIENTS, entry_bytes

HEAD = 32


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "round": 5,
        "lr": 0.1,
        "streams": (0,),
        "steps": 1,
        "probes": 2,
        "coefficients": [[[1.0, -2.0]]],
    }
    return Entry(**(fields | changes))


@st.composite
def guides(draw: st.DrawFn) -> Guide:
    size = draw(st.integers(1, 20))
    signs = draw(st.integers(0, 2**size - 1)).to_bytes(-(-size // 8), "little")
    factors = draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=3))
    return Guide(size, signs, np.array(factors, np.float32))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    streams = draw(
        st.just((0,))
        | st.sets(st.integers(1, 2**32 - 1), min_size=1, max_size=3).map(lambda s: tuple(sorted(s)))
    )
    steps, probes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    count = len(streams) * steps * probes
    limit = float(np.float32(MAX_COEFFICIENT / 2))
    values = draw(st.lists(st.floats(-limit, limit, width=32), min_size=count, max_size=count))
    return Entry(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.floats(0, 1e6)),
        streams,
        steps,
        probes,
        np.array(values, np.float32).reshape(len(streams), steps, probes),
        draw(st.just(b"") | st.binary(min_size=32, max_size=32)),
        draw(st.none() | guides()),
    )


def test_the_bytes_of_a_shared_entry() -> None:
    expected = b"SFLe" + bytes([1, 0, 0, 0]) + struct.pack("<4Id2f", 5, 1, 1, 2, 0.1, 1.0, -2.0)
    assert entry().encode() == expected
    assert (entry().scalar_bytes, entry().key_bytes, entry().nbytes) == (8, 0, HEAD + 8)


def test_the_bytes_of_an_entry_with_own_directions_and_a_checkpoint() -> None:
    own = entry(streams=(3, 7), coefficients=[[[1, 2]], [[3, 4]]], checkpoint=b"c" * 32)
    expected = b"SFLe" + bytes([1, 3, 0, 0]) + struct.pack("<4Id", 5, 2, 1, 2, 0.1)
    expected += struct.pack("<2I4f", 3, 7, 1, 2, 3, 4) + b"c" * 32
    assert own.encode() == expected
    assert (own.scalar_bytes, own.key_bytes, own.nbytes) == (16, 8, HEAD + 16 + 8 + 32)


def test_the_bytes_of_an_entry_with_a_guide() -> None:
    made = entry(guide=Guide(9, b"\x05\x01", np.array([0.5, -2.0], np.float32)))
    expected = b"SFLe" + bytes([2, 0, 0, 0]) + struct.pack("<4Id2f", 5, 1, 1, 2, 0.1, 1.0, -2.0)
    expected += struct.pack("<2I2f", 9, 2, 0.5, -2.0) + b"\x05\x01"
    assert made.encode() == expected
    # Two coefficients are scalars; a guide names a direction.
    assert (made.scalar_bytes, made.key_bytes, made.nbytes) == (8, 8 + 8 + 2, HEAD + 8 + 18)
    assert entry_bytes(b"ab" + expected, 2) == (18, 8, 2 + len(expected))


def test_a_reader_of_format_1_alone_knows_it_is_another_one() -> None:
    guided = entry(guide=Guide(1, b"\0", np.ones(1, np.float32))).encode()
    assert guided[4] == 2 and entry().encode()[4] == 1
    with pytest.raises(WireError, match="format 1 or 2"):
        Entry.decode(guided[:4] + b"\x03" + guided[5:])
    with pytest.raises(WireError, match="too many"):
        Entry.decode(guided[:4] + b"\x01" + guided[5:])
    with pytest.raises(WireError, match="guide is cut short"):
        Entry.decode(entry().encode()[:4] + b"\x02" + entry().encode()[5:])


def test_keys_come_in_the_order_of_the_coefficients() -> None:
    own = entry(streams=(1, 4), steps=2, probes=2, coefficients=np.zeros((2, 2, 2)))
    order = [(key.stream, key.step, key.probe) for key in own.keys()]
    assert order == [(s, j, p) for s in (1, 4) for j in (0, 1) for p in (0, 1)]
    assert all(key == Key(5, key.step, key.stream, key.probe) for key in own.keys())


@settings(max_examples=100, deadline=None)
@given(entries())
def test_encoding_is_one_to_one(original: Entry) -> None:
    data = original.encode()
    assert len(data) == original.nbytes
    decoded = Entry.decode(data)
    assert decoded == original and hash(decoded) == hash(original)
    assert decoded.coefficients.tobytes() == original.coefficients.tobytes()
    assert decoded.encode() == data


@settings(max_examples=150, deadline=None)
@given(entries(), st.data())
def test_altered_bytes_are_refused_or_mean_another_entry(
    original: Entry, data: st.DataObject
) -> None:
    raw = bytearray(original.encode())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        assert Entry.decode(bytes(raw)) != original
    except WireError:
        pass


@settings(max_examples=100, deadline=None)
@given(entries(), st.data())
def test_cut_or_extended_bytes_are_refused(original: Entry, data: st.DataObject) -> None:
    raw = original.encode()
    with pytest.raises(WireError):
        Entry.decode(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(WireError):
        Entry.decode(raw + b"\0")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_wire_error_only(data: bytes) -> None:
    for raw in (data, b"SFLe\x01" + data, b"SFLe\x02" + data):
        with pytest.raises(WireError):
            Entry.decode(raw)


@pytest.mark.parametrize(
    "counts", [(1, 1, 2**32 - 1), (2**20, 1, 1), (2**16, 2**8, 2**8), (1, 0, 1)]
)
def test_a_declared_size_allocates_nothing(counts: tuple[int, int, int]) -> None:
    flags = 1 if counts[0] > 1 else 0
    raw = struct.pack("<4sBBHIIIId", b"SFLe", 1, flags, 0, 1, *counts, 0.1) + bytes(64)
    tracemalloc.start()
    with pytest.raises(WireError):
        Entry.decode(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_the_shared_stream_has_one_spelling() -> None:
    raw = struct.pack("<4sBBH4IdIf", b"SFLe", 1, 1, 0, 5, 1, 1, 1, 0.1, 0, 1.0)
    with pytest.raises(WireError, match="implied"):
        Entry.decode(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": -1},
        {"round": 2**32},
        {"round": True},
        {"lr": float("nan")},
        {"lr": -0.1},
        {"lr": 1},
        {"lr": 1e7},
        {"streams": ()},
        {"streams": [0]},
        {"streams": (2, 1), "coefficients": np.zeros((2, 1, 2))},
        {"streams": (1, 1), "coefficients": np.zeros((2, 1, 2))},
        {"streams": (2**32,)},
        {"steps": 0, "coefficients": np.zeros((1, 0, 2))},
        {"probes": MAX_COEFFICIENTS + 1},
        {"steps": 2**11, "probes": 2**10},
        {"coefficients": [[1.0, 2.0]]},
        {"coefficients": [[[1.0, float("nan")]]]},
        {"coefficients": [[[1.0, float("inf")]]]},
        {"coefficients": [[[1.0, 1e39]]]},
        {"coefficients": [[[1.0, -2e12]]]},
        {"checkpoint": b"short"},
    ],
)
def test_an_illegal_entry_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(JournalError):
        entry(**changes)


def test_coefficients_are_a_read_only_copy() -> None:
    values = np.ones((1, 1, 2), np.float32)
    one = entry(coefficients=values)
    values[:] = 9
    assert one.coefficients.tolist() == [[[1.0, 1.0]]]
    with pytest.raises(ValueError, match="read-only"):
        one.coefficients[0, 0, 0] = 2
