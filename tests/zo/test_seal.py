"""Seals: what they make of a run key, and of the journal's entries."""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np
import pytest
import torch

from sfl_flower.errors import ConfigError, JournalError, WireError
from sfl_flower.zo import Directions, Entry, Key, OptimizerSpec, run_key
from sfl_flower.zo.entry import entry_bytes
from sfl_flower.zo.header import JournalHeader, manifest_digest, params_digest
from sfl_flower.zo.replica import Replica
from sfl_flower.zo.seal import sealed, sealed_key

RUN, SEAL = run_key("seal"), bytes(range(16))
SHAPES = [(3, 50)]


def entry(round: int, seal: bytes) -> Entry:
    return Entry(round, 0.5, (0,), 1, 2, np.array([[[1.0, -2.0]]]), seal=seal)


def replica() -> Replica:
    theta = torch.zeros(150)
    header = JournalHeader(RUN, manifest_digest(b""), params_digest(theta), "rademacher")
    assert header.optimizer == OptimizerSpec()
    return Replica.initial(theta, header, SHAPES)


def test_the_key_of_a_sealed_round_is_a_hash_of_both() -> None:
    expected = blake2b(RUN + SEAL, digest_size=16, person=b"sfl.seal.1").digest()
    assert sealed_key(RUN, SEAL) == expected


@pytest.mark.parametrize("seal", [b"", b"x" * 15, b"x" * 32])
def test_a_seal_of_another_length_is_refused(seal: bytes) -> None:
    with pytest.raises(ConfigError, match=f"16 bytes each; they are 16 and {len(seal)}"):
        sealed_key(RUN, seal)


def test_sealed_directions_are_those_of_the_sealed_key() -> None:
    plain = Directions(RUN, "rademacher", SHAPES)
    key = Key(4, 1, 0, 2)
    given = sealed(plain, SEAL).of(key).values()
    same = Directions(sealed_key(RUN, SEAL), "rademacher", SHAPES)
    assert torch.equal(given, same.of(key).values())
    assert not torch.equal(given, plain.of(key).values())
    assert not torch.equal(given, sealed(plain, SEAL[::-1]).of(key).values())
    assert sealed(plain, b"") is plain and plain.run_key == RUN


def test_the_bytes_of_an_entry_with_a_seal() -> None:
    made = Entry(5, 0.1, (3,), 1, 2, np.array([[[1.0, -2.0]]]), b"c" * 32, seal=SEAL)
    expected = b"SFLe" + bytes([1, 7, 0, 0]) + struct.pack("<4IdI2f", 5, 1, 1, 2, 0.1, 3, 1.0, -2.0)
    expected += SEAL + b"c" * 32
    assert made.encode() == expected and made.nbytes == len(expected)
    # The seal and the stream name directions.
    assert entry_bytes(expected, 0) == (20, 8, len(expected)) and made.key_bytes == 20
    assert Entry.decode(expected) == made and Entry.decode(expected).seal == SEAL
    with pytest.raises(WireError, match="cut short by 1 bytes"):
        Entry.decode(expected[:-1])
    with pytest.raises(JournalError, match="a seal is 16 bytes, or none"):
        entry(1, b"short")


def test_a_replay_goes_along_the_directions_of_each_seal() -> None:
    one = replica()
    one.replay([entry(1, SEAL), entry(2, b""), entry(3, SEAL[::-1])])
    expected = torch.zeros(150)
    plain = Directions(RUN, "rademacher", SHAPES)
    for round, seal in ((1, SEAL), (2, b""), (3, SEAL[::-1])):
        us = [sealed(plain, seal).of(Key(round, 0, 0, p)).values() for p in (0, 1)]
        expected -= 0.5 * us[0] - us[1]  # lr times the coefficients 1 and -2: no rounding
    assert torch.equal(one.theta, expected)
    other = replica()
    other.replay([entry(1, SEAL), entry(2, b""), entry(3, SEAL)])
    assert other.digest != one.digest and not torch.equal(other.theta, one.theta)
