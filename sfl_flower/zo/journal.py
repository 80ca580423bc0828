"""The journal: an append-only, digest-chained record of every update of the client parameters."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo.entry import Entry, entry_bytes
from sfl_flower.zo.header import JournalHeader, chain, header_bytes

__all__ = ["MAX_TAIL_ENTRIES", "Journal", "Tail", "tail_bytes", "tail_ends"]

MAX_TAIL_ENTRIES = 1 << 20
_TAIL = struct.Struct("<4sBBHIIq32s32s")
_MAGIC, _FORMAT = b"SFLt", 1
_CHECKSUM_BYTES = 16


@dataclass(frozen=True)
class Tail:
    """The entries after a version, with the digests at both ends.

    Attributes
    ----------
    since : int
        Version that the first entry builds on.
    last_round : int
        Round of the entry before the first, -1 if there is none.
    base, digest : bytes
        Running digest before the first and after the last entry.
    entries : tuple of Entry
        In order; may be empty.
    """

    since: int
    last_round: int
    base: bytes
    digest: bytes
    entries: tuple[Entry, ...]

    def encode(self) -> bytes:
        """Return the bytes that `decode` reads."""
        head = _TAIL.pack(
            _MAGIC,
            _FORMAT,
            0,
            0,
            self.since,
            len(self.entries),
            self.last_round,
            self.base,
            self.digest,
        )
        return head + b"".join(entry.encode() for entry in self.entries)

    def digests(self) -> list[bytes]:
        """Return the running digest before the first entry and after each."""
        running = [self.base]
        for entry in self.entries:
            running.append(chain(running[-1], entry.encode()))
        return running

    def after(self, version: int) -> Self:
        """Return the part of the tail that builds on a later version.

        Raises
        ------
        JournalError
            If the tail does not pass that version.
        """
        done = version - self.since
        if not 0 <= done <= len(self.entries):
            raise JournalError(
                f"A tail of {len(self.entries)} entries from version {self.since} does not pass "
                f"version {version}; download afresh."
            )
        last = self.entries[done - 1].round if done else self.last_round
        base, left = self.digests()[done], self.entries[done:]
        return type(self)(version, last, base, self.digest, left)

    @classmethod
    def decode(cls, data: bytes, *, max_entries: int = MAX_TAIL_ENTRIES) -> Self:
        """Read and verify a tail: form, order of rounds, and the chain between both digests.

        Raises
        ------
        WireError
            If anything is not as declared; nothing larger than ``data`` is allocated.
        """
        if len(data) < _TAIL.size:
            raise WireError(f"A journal tail has at least {_TAIL.size} bytes; {len(data)} came.")
        magic, form, zero, pad, since, count, last, base, digest = _TAIL.unpack_from(data)
        if magic != _MAGIC or form != _FORMAT or zero or pad:
            raise WireError("These bytes are not a journal tail of format 1.")
        if count > max_entries or not -1 <= last < 1 << 32:
            raise WireError(f"A journal tail declares {count} entries; legal: 0..{max_entries}.")
        entries: list[Entry] = []
        offset, running, previous = _TAIL.size, base, last
        for _ in range(count):
            entry, end = Entry.decode_from(data, offset)
            if entry.round <= previous:
                raise WireError(f"Round {entry.round} follows round {previous} in a journal tail.")
            running, previous, offset = chain(running, data[offset:end]), entry.round, end
            entries.append(entry)
        if offset != len(data):
            raise WireError(f"A journal tail has {len(data) - offset} bytes too many.")
        if running != digest:
            raise WireError("A journal tail does not lead to the digest it declares.")
        return cls(since, last, base, digest, tuple(entries))


def tail_ends(data: bytes) -> tuple[int, bytes, int, bytes]:
    """Return version and digest before an encoded tail and after it, as it states them itself.

    Raises
    ------
    WireError
        If the bytes are not those of a tail.
    """
    if len(data) < _TAIL.size:
        raise WireError(f"A journal tail has at least {_TAIL.size} bytes; {len(data)} came.")
    _, _, _, _, since, count, _, base, digest = _TAIL.unpack_from(data)
    return since, base, since + count, digest


def tail_bytes(data: bytes) -> dict[str, int]:
    """Count the coefficients (scalars) and stream numbers (keys) in an encoded tail, in bytes.

    Nothing but the heads of the entries is read.

    Raises
    ------
    WireError
        If the bytes are not those of a tail.
    """
    found, offset = {"scalars": 0, "keys": 0}, _TAIL.size
    while offset < len(data):
        keys, scalars, offset = entry_bytes(data, offset)
        found["keys"] += keys
        found["scalars"] += scalars
    return found


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"sfl.file.1").digest()


class Journal:
    """All updates since version 0, or since the last compaction.

    Parameters
    ----------
    header : JournalHeader
        What the entries' meaning depends on; its digest starts the chain.

    Attributes
    ----------
    header : JournalHeader
        As given.
    base : int
        Oldest version from which a tail can still be made.
    """

    def __init__(self, header: JournalHeader) -> None:
        self.header = header
        self.base = 0
        self._last_round = -1
        self._entries: list[Entry] = []
        self._digests = [header.digest()]

    @property
    def version(self) -> int:
        """Number of entries ever appended."""
        return self.base + len(self._entries)

    @property
    def digest(self) -> bytes:
        """Running digest at `version`."""
        return self._digests[-1]

    @property
    def entries(self) -> Sequence[Entry]:
        """Entries from `base` on."""
        return tuple(self._entries)

    def append(self, entry: Entry) -> None:
        """Add an entry and extend the chain.

        Raises
        ------
        JournalError
            If its round does not come after the last; the journal is then unchanged. (A
            non-finite or misshapen entry cannot be built.)
        """
        last = self._entries[-1].round if self._entries else self._last_round
        if entry.round <= last:
            raise JournalError(
                f"An entry of round {entry.round} cannot follow round {last}; rounds increase."
            )
        digest = chain(self.digest, entry.encode())
        self._entries.append(entry)
        self._digests.append(digest)

    def digest_at(self, version: int) -> bytes:
        """Return the running digest at a version in ``base .. version``.

        Raises
        ------
        JournalError
            If the version is outside that range.
        """
        self._check(version)
        return self._digests[version - self.base]

    def tail(self, since_version: int) -> bytes | None:
        """Return the encoded entries after a version; None if they were compacted away.

        Raises
        ------
        JournalError
            If the version is negative or lies in the future.
        """
        if 0 <= since_version < self.base:
            return None
        self._check(since_version)
        return self._tail(since_version).encode()

    def bytes_since(self, version: int) -> int:
        """Return the length of `tail` without making it.

        Raises
        ------
        JournalError
            If the version is outside ``base .. version``.
        """
        self._check(version)
        return _TAIL.size + sum(e.nbytes for e in self._entries[version - self.base :])

    def compact(self, keep_from_version: int) -> None:
        """Forget the entries before a version; whoever is older downloads the parameters.

        Raises
        ------
        JournalError
            If the version is outside ``base .. version``.
        """
        self._check(keep_from_version)
        dropped = keep_from_version - self.base
        if dropped:
            self._last_round = self._entries[dropped - 1].round
            del self._entries[:dropped], self._digests[:dropped]
            self.base = keep_from_version

    def encode(self) -> bytes:
        """Return the bytes of a journal file: header, tail from `base` on, checksum of both."""
        body = self.header.encode() + self._tail(self.base).encode()
        return body + _checksum(body)

    @classmethod
    def decode(cls, data: bytes, source: str = "The data") -> Self:
        """Read what `encode` wrote and verify its chain.

        Parameters
        ----------
        data : bytes
            The bytes.
        source : str
            What they are, for the error message.

        Raises
        ------
        JournalError
            If they are not a journal, were altered or cut short.
        """
        body, check = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if _checksum(body) != check:
            raise JournalError(f"{source} is not an intact journal: its checksum does not fit.")
        try:
            length = header_bytes(body)
            header = JournalHeader.decode(body[:length])
            tail = Tail.decode(body[length:])
        except WireError as error:
            raise JournalError(f"{source} is not an intact journal: {error}") from error
        if tail.since == 0 and (tail.base != header.digest() or tail.last_round != -1):
            raise JournalError(f"{source} is not an intact journal: its header is another one's.")
        journal = cls(header)
        journal.base, journal._last_round = tail.since, tail.last_round
        journal._digests = [tail.base]
        for entry in tail.entries:
            journal.append(entry)
        return journal

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a journal from a file; raises `JournalError` as `decode`, and without the file."""
        try:
            data = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise JournalError(f"Cannot read the journal {path}: {error.strerror}.") from error
        return cls.decode(data, str(path))

    def _tail(self, since: int) -> Tail:
        kept = self._entries[since - self.base :]
        before = self._entries[: since - self.base]
        last = before[-1].round if before else self._last_round
        return Tail(since, last, self.digest_at(since), self.digest, tuple(kept))

    def _check(self, version: int) -> None:
        if not self.base <= version <= self.version:
            raise JournalError(
                f"Version {version} is not in this journal; legal: {self.base}..{self.version}."
            )
