from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo import (
    Entry,
    Journal,
    JournalHeader,
    OptimizerSpec,
    Tail,
    params_digest,
    run_key,
)
from sfl_flower.zo.header import chain, header_bytes, manifest_digest

HEADER = JournalHeader(
    run_key("journal"), manifest_digest(b"m"), params_digest(torch.zeros(10)), "sphere",
    OptimizerSpec("adamw", weight_decay=0.01),
)  # fmt: skip


def entry(round_: int) -> Entry:
    return Entry(round_, 0.1, (0,), 1, 2, np.array([[[round_, -1.0]]]))


def journal(*rounds: int) -> Journal:
    made = Journal(HEADER)
    for round_ in rounds:
        made.append(entry(round_))
    return made


def test_header_encoding() -> None:
    data = HEADER.encode()
    assert len(data) == header_bytes(data) == 129
    assert JournalHeader.decode(data) == HEADER
    for bad in (data[:-1], data + b"\0", b"X" + data[1:], data[:5] + b"\x07" + data[6:], b""):
        with pytest.raises(WireError):
            JournalHeader.decode(bad)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([(b"\1", 124), (b"\2", 132)]), st.data())
def test_random_headers_raise_wire_error_only(form: tuple[bytes, int], data: st.DataObject) -> None:
    rest = data.draw(st.binary(min_size=form[1], max_size=form[1]))
    try:
        JournalHeader.decode(b"SFLh" + form[0] + rest)
    except WireError:
        pass


def test_header_fields_are_checked() -> None:
    with pytest.raises(JournalError, match="run_key"):
        JournalHeader(b"", bytes(32), bytes(32))
    with pytest.raises(JournalError, match="params_digest"):
        JournalHeader(bytes(16), bytes(32), bytes(31))
    with pytest.raises(JournalError, match="cauchy"):
        JournalHeader(bytes(16), bytes(32), bytes(32), "cauchy")


def test_the_chain_covers_header_and_every_entry() -> None:
    made = journal(0, 4)
    first = chain(HEADER.digest(), entry(0).encode())
    assert made.digest_at(0) == HEADER.digest()
    assert made.digest_at(1) == first
    assert made.digest == made.digest_at(2) == chain(first, entry(4).encode())
    assert made.digest != journal(0, 5).digest
    assert journal(4).digest != journal(0, 4).digest


@pytest.mark.parametrize("round_", [3, 2, 0])
def test_a_round_out_of_order_is_refused_and_changes_nothing(round_: int) -> None:
    made = journal(1, 3)
    digest = made.digest
    with pytest.raises(JournalError, match="cannot follow round 3"):
        made.append(entry(round_))
    assert (made.version, made.digest, len(made.entries)) == (2, digest, 2)


def test_tails_join() -> None:
    made = journal(0, 1, 5, 6)
    for since in range(5):
        data = made.tail(since)
        assert data is not None
        assert len(data) == made.bytes_since(since)
        tail = Tail.decode(data)
        assert tail.entries == tuple(made.entries[since:])
        assert (tail.base, tail.digest) == (made.digest_at(since), made.digest)
        assert Tail.decode(data).entries == tail.entries
    for outside in (-1, 5):
        with pytest.raises(JournalError, match=r"0\.\.4"):
            made.tail(outside)


def test_a_tail_is_cut_at_any_version_it_passes() -> None:
    made = journal(0, 1, 5, 6)
    tail = Tail.decode(made.tail(1) or b"")
    assert tail.digests() == [made.digest_at(version) for version in range(1, 5)]
    for version in range(1, 5):
        assert tail.after(version).encode() == made.tail(version)
    for outside in (0, 5):
        with pytest.raises(JournalError, match=f"version {outside}"):
            tail.after(outside)


def test_compaction_forgets_the_old_and_keeps_the_rest() -> None:
    whole, made = journal(0, 1, 5, 6), journal(0, 1, 5, 6)
    made.compact(3)
    assert (made.base, made.version, made.digest) == (3, 4, whole.digest)
    assert made.tail(2) is None
    assert made.tail(3) == whole.tail(3)
    with pytest.raises(JournalError, match=r"3\.\.4"):
        made.digest_at(2)
    made.compact(4)
    with pytest.raises(JournalError, match="cannot follow round 6"):
        made.append(entry(6))
    made.append(entry(7))
    whole.append(entry(7))
    assert made.digest == whole.digest
    made.compact(4)
    assert made.base == 4


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    made = journal(0, 1, 5)
    path.write_bytes(made.encode())
    made.append(entry(9))
    made.compact(2)
    path.write_bytes(made.encode())
    assert [found.name for found in tmp_path.iterdir()] == ["journal.bin"]
    loaded = Journal.load(path)
    assert loaded.header == HEADER
    assert (loaded.base, loaded.version, loaded.digest) == (2, 4, made.digest)
    assert loaded.entries == made.entries
    with pytest.raises(JournalError, match="cannot follow round 9"):
        loaded.append(entry(8))


def test_a_journal_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"Cannot read the journal .*journal\.bin: No such file"):
        Journal.load(tmp_path / "journal.bin")


def test_an_empty_compacted_journal_survives(tmp_path: Path) -> None:
    made = journal(0, 1)
    made.compact(2)
    (tmp_path / "j").write_bytes(made.encode())
    loaded = Journal.load(tmp_path / "j")
    assert (loaded.version, loaded.digest, loaded.entries) == (2, made.digest, ())
    with pytest.raises(JournalError, match="cannot follow round 1"):
        loaded.append(entry(1))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_flipped_bit_of_a_file_is_detected(data: st.DataObject) -> None:
    raw = bytearray(journal(0, 1, 5).encode())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(JournalError, match="intact"):
        Journal.decode(bytes(raw))


def test_a_file_with_a_foreign_header_is_refused() -> None:
    other = Journal(dataclasses.replace(HEADER, law="gaussian"))
    other._entries, other._digests = journal(0)._entries, journal(0)._digests
    with pytest.raises(JournalError, match="another one's"):
        Journal.decode(other.encode())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_truncated_files_are_detected(data: st.DataObject) -> None:
    raw = journal(0, 1, 5).encode()
    with pytest.raises(JournalError):
        Journal.decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_tails_raise_wire_error_only(data: bytes) -> None:
    for raw in (data, b"SFLt\x01\0\0\0" + data):
        with pytest.raises(WireError):
            Tail.decode(raw)


def test_a_tail_of_another_length_or_order_is_refused() -> None:
    data = journal(0, 1).tail(0)
    assert data is not None
    with pytest.raises(WireError, match=r"0\.\.1"):
        Tail.decode(data, max_entries=1)
    with pytest.raises(WireError, match="too many"):
        Tail.decode(data + b"\0")
    swapped = Tail(0, -1, bytes(32), bytes(32), (entry(1), entry(0))).encode()
    with pytest.raises(WireError, match="Round 0 follows round 1"):
        Tail.decode(swapped)
    wrong = Tail(0, -1, HEADER.digest(), bytes(32), (entry(0),)).encode()
    with pytest.raises(WireError, match="digest"):
        Tail.decode(wrong)
