"""Changes of weights: their blocks, differences by hand, what is booked, what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from torch import nn

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.wire.downlink import (
    block,
    blocks,
    change_bytes,
    check_way,
    decode_difference,
    encode_difference,
    flat_values,
    followed_state,
    held_digest,
)
from sfl_flower.zo.walks import LocalWalk, RoundOfWalks

WALKS = RoundOfWalks(
    3, 0.1, (LocalWalk(b"k" * 16, 1, 1.0, np.ones((2, 3), np.float32), np.ones(2, np.uint8)),)
)


def test_int8_by_hand() -> None:
    """The largest is 127: a scale of 1, and every value goes to the nearest whole number."""
    given = np.array([127.0, -3.4, 0.5, 1.5, -126.6], np.float32)
    data = encode_difference("int8", given)
    # Dimensions [1, 5] and the codes; [1, 1] and the bits of 1.0 as a bfloat16.
    codes = np.array([127, -3, 0, 2, -127], np.int8)
    assert data == (
        struct.pack("<BII", 2, 1, 5)
        + codes.tobytes()
        + struct.pack("<BII", 2, 1, 1)
        + struct.pack("<H", 0x3F80)
    )
    found = decode_difference("int8", data, 5)
    assert found.dtype == np.float32 and found.tolist() == [127, -3, 0, 2, -127]


@pytest.mark.parametrize(
    ("way", "worst"),
    [
        ("bfloat16", 2**-8),
        ("float16", 2**-10),
        ("int8", 1 / 250),
        ("int4", 1 / 13),
        ("int8+deflate", 1 / 250),
        ("topk:0.5+int8", 1.0),
        ("randtopk:0.5+int4+deflate", 1.0),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 256, 700])
def test_differences_come_back_as_the_encoding_has_them(way: str, worst: float, size: int) -> None:
    given = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    data = encode_difference(way, given)
    assert encode_difference(way, given) == data  # nothing is drawn
    found = decode_difference(way, data, size)
    assert found.shape == (size,)
    assert np.abs(found - given).max() <= worst * np.abs(given).max()


def test_nothing_differs_in_nothing() -> None:
    assert encode_difference("int8", np.zeros(0, np.float32)) == b""
    assert decode_difference("int8", b"", 0).shape == (0,)
    found = decode_difference("int8", encode_difference("int8", np.zeros(9, np.float32)), 9)
    assert not found.any()


def scaled(bits: int) -> bytes:
    return encode_difference("int8", np.ones(3, np.float32))[:-2] + struct.pack("<H", bits)


GOOD = encode_difference("int8", np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("way", "data", "size", "says"),
    [
        ("int8", b"", 3, "cut short, or not in this encoding"),
        ("int8", GOOD[:-1], 3, "cut short, or not in this encoding"),
        ("int8", GOOD + b"x", 3, "1 bytes too many"),
        ("int8", GOOD, 4, "is of 3 values, this model has 4"),
        ("int4", GOOD, 3, "cut short, or not in this encoding|bytes"),
        ("int8", scaled(0x7F80), 3, "a scale that is not finite"),
        ("int8", scaled(0x7FC0), 3, "a scale that is not finite"),
        ("int8", scaled(0), 3, "numbers of a scale of 0"),
        ("int8", struct.pack("<BII", 2, 2**31, 2**31) + GOOD, 3, "cut short"),
        ("int8", bytes([200]) + GOOD, 3, "cut short"),
        ("bfloat16", struct.pack("<BIIH", 2, 1, 1, 0x7F80), 1, "value that is not finite"),
        ("int8+deflate", GOOD, 3, "."),
    ],
)
def test_bad_differences_are_refused(way: str, data: bytes, size: int, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_difference(way, data, size)


def test_what_cannot_be_written_is_an_error() -> None:
    with pytest.raises(WireError, match="differences of weights hold a value that is not finite"):
        encode_difference("int8", np.array([np.nan], np.float32))


def test_changes_are_blocks_and_booked_by_what_they_are() -> None:
    changes = block("scalars", WALKS.encode()) + block("client", GOOD) + block("head", GOOD * 2)
    assert list(blocks(changes)) == [
        ("scalars", WALKS.encode()),
        ("client", GOOD),
        ("head", GOOD * 2),
    ]
    assert list(blocks(b"")) == []
    assert change_bytes(changes) == {
        "scalars": 24,
        "keys": 20,
        "weights": len(GOOD),
        "auxiliary": 2 * len(GOOD),
    }


@pytest.mark.parametrize(
    "changes",
    [b"\1", block("client", b"abc")[:-1], b"\7" + block("client", b"abc")[1:], b"\0" * 5],
)
def test_bytes_that_are_no_changes_are_refused_and_not_booked(changes: bytes) -> None:
    with pytest.raises(WireError, match="Changes of weights"):
        list(blocks(changes))
    assert change_bytes(changes) == {}
    assert change_bytes(block("scalars", b"none")) == {}


def test_followed_are_trained_parameters_of_float32() -> None:
    first, norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
    module = nn.Sequential(first, norm, nn.Linear(3, 1).double())
    first.bias.requires_grad_(False)
    assert sorted(followed_state(module)) == ["0.weight", "1.bias", "1.weight"]
    flat = flat_values(followed_state(module))
    assert flat.shape == (6 + 3 + 3,) and flat.dtype == np.float32
    assert flat[:6].tolist() == first.weight.detach().reshape(-1).tolist()
    flat[:] = 7  # a copy
    assert not torch.equal(norm.bias, torch.full((3,), 7.0))
    assert flat_values({}).shape == (0,)
    assert held_digest({"client": flat}) != held_digest({"head": flat})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("int7", "downlink is 'int7'; it must be weights, scalars or an encoding: one of float32"),
        ("float32", "no fewer bytes than the weights; set downlink to weights"),
        ("topk:0+int8", "downlink is 'topk:0"),
        ("", "downlink is ''"),
    ],
)
def test_ways_that_there_are_not_are_refused(value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_way("downlink", value, ("scalars",))
