from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import WireError
from sfl_flower.wire.draft import PROTOCOL
from sfl_flower.wire.reader import Reader
from tests.wire.contents import ARRAYS, HEADERS, pack

pytestmark = pytest.mark.flower


def reader(arrays: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Reader:
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays or {}),
            "config": ConfigRecord({"protocol": PROTOCOL, **(config or {})}),
            "metrics": MetricRecord({"n": 3, "x": 0.5}),
        }
    )
    return Reader(content, "test")


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.zeros((0, 4), np.float32),
        np.array(3, np.int64).reshape(1),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.array([1, 2, 255], np.uint8),
    ],
)
def test_an_array_comes_back_equal_and_cannot_be_written(value: np.ndarray) -> None:
    content = pack({"a": value})
    read = Reader(content, "test").array("a", str(value.dtype), shape=value.shape)
    assert np.array_equal(read, value)
    assert value.size == 0 or not read.flags.writeable


def huge(shape: tuple[int, ...], data: bytes | None = None) -> Array:
    """Return an array that declares `shape` and holds 12 bytes."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    head = head.ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + b"\0" * 12
    return Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=data or body)


@pytest.mark.parametrize(
    "shape",
    [(10**12,), (10**6, 10**6), (2**62, 4), (0, 10**12), (-1, -3), (-3,), (1,) * 70 + (3,)],
)
def test_nothing_is_allocated_from_what_an_array_declares(shape: tuple[int, ...]) -> None:
    box = reader({"a": huge(shape)})
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="'a' whose bytes do not match float32 of shape"):
            box.array("a", "float32")
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_declared_shape_that_the_bytes_hold_is_read() -> None:
    assert reader({"a": huge((3,))}).array("a", "float32").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (Array(np.zeros(3, np.float64)), "as float64 .* expected float32"),
        (Array(np.zeros((3, 1), np.float32)), r"shape \(3, 1\), expected \(3,\)"),
        (Array(np.array([1, np.nan, 2], np.float32)), "not finite"),
        (Array(np.array([1, np.inf, 2], np.float32)), "not finite"),
        (Array(dtype="float32", shape=(3,), stype="torch", data=b""), "torch"),
        (huge((3,), b"\x80\x04K\x01."), "bytes do not match"),
        (Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b""), "do not match"),
    ],
)
def test_an_array_of_another_form_is_refused(array: Array, says: str) -> None:
    with pytest.raises(WireError, match=says):
        reader({"a": array}).array("a", "float32", shape=(3,))


def test_an_array_beyond_the_limit_is_refused() -> None:
    box = reader({"a": Array(np.zeros(2000, np.float32))})
    with pytest.raises(WireError, match="8128 bytes, at most 100 are read"):
        box.array("a", "float32", max_bytes=100)


@settings(deadline=None, max_examples=300)
@given(ARRAYS, st.sampled_from(["float32", "int64", "uint8"]))
def test_random_arrays_raise_wire_errors_only(array: Array, dtype: str) -> None:
    try:
        value = reader({"a": array}).array("a", dtype)
    except WireError:
        return
    assert (str(value.dtype), value.shape) == (dtype, tuple(array.shape))


@settings(deadline=None, max_examples=200)
@given(HEADERS)
def test_random_headers_are_never_evaluated(data: bytes) -> None:
    array = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)
    with pytest.raises(WireError, match="do not match"):
        reader({"a": array}).array("a", "float32")


@pytest.mark.parametrize("record", ["arrays", "config", "metrics"])
def test_a_missing_record_is_named(record: str) -> None:
    content = pack({})
    del content[record]
    with pytest.raises(WireError, match=f"lacks the record '{record}'"):
        Reader(content, "test")


@pytest.mark.parametrize("version", [None, 0, 2, "3", 10**9])
def test_another_protocol_version_says_what_to_install(version: Any) -> None:
    config = {} if version is None else {"protocol": version}
    content = RecordDict(
        {
            "arrays": ArrayRecord({}),
            "config": ConfigRecord(config),
            "metrics": MetricRecord({}),
        }
    )
    with pytest.raises(WireError, match="this side speaks 4; install the same sfl-flower"):
        Reader(content, "test").begin("test", spoken=False)
    if version is None:
        Reader(content, "test").begin("test", spoken=True)


@pytest.mark.parametrize("bad", [True, 1.0, "1", -1, 11])
def test_an_integer_has_a_range(bad: Any) -> None:
    with pytest.raises(WireError, match=r"a whole number in \[0, 10\]"):
        reader(config={"a": bad}).integer("a", high=10)


@pytest.mark.parametrize("bad", [True, math.nan, math.inf, "1", 2.0, -0.5])
def test_a_number_has_a_range(bad: Any) -> None:
    with pytest.raises(WireError, match=r"a number in \[0, 1\]"):
        reader(config={"a": bad}).number("a", 0, 1)


def test_texts_truth_values_and_metrics() -> None:
    box = reader(config={"t": "none", "b": True, "n": 1})
    assert (box.text("t"), box.boolean("b"), box.metric("n")) == ("none", True, 3)
    with pytest.raises(WireError, match="expected one of a, b"):
        box.text("t", ("a", "b"))
    with pytest.raises(WireError, match="expected a text"):
        box.text("n")
    with pytest.raises(WireError, match="expected a text"):
        box.text("t", longest=2)
    with pytest.raises(WireError, match="expected true or false"):
        box.boolean("n")
    with pytest.raises(WireError, match=r"x=0\.5, expected a whole number"):
        box.metric("x")
    with pytest.raises(WireError, match="lacks the setting 'gone'"):
        box.text("gone")


def test_what_nobody_asked_for_is_refused() -> None:
    box = reader({"a": Array(np.zeros(1, np.float32))}, {"b": 1})
    with pytest.raises(WireError, match="carries unknown entries: a, b"):
        box.done()
    box.array("a", "float32")
    box.integer("b")
    box.done()


def test_a_group_is_read_by_its_prefix() -> None:
    box = reader({"w.b": Array(np.ones(1, np.int64)), "w.a": Array(np.zeros(2, np.float32))})
    group = box.group("w.", ("float32", "int64"))
    assert {k: v.tolist() for k, v in group.items()} == {"a": [0.0, 0.0], "b": [1]}
    with pytest.raises(WireError, match=r"'w.b' as int64, expected one of float32"):
        box.group("w.", ("float32",))
