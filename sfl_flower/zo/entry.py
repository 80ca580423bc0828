"""A journal entry: one update of the client parameters, as the scalars that make it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo.keys import RUN_KEY_BYTES, SHARED_STREAM, Key, step_keys

if TYPE_CHECKING:  # a client that is sent no guide needs none of it
    from sfl_flower.zo.guide import Guide

__all__ = ["DIGEST_BYTES", "MAX_COEFFICIENT", "MAX_COEFFICIENTS", "MAX_LR", "Entry", "entry_bytes"]

DIGEST_BYTES = 32
MAX_COEFFICIENTS = 1 << 20
MAX_COEFFICIENT = 1e12
"""Largest magnitude: no sum of legal terms, squared, leaves the range of float32."""
MAX_LR = 1e6
_LIMIT = 1 << 32
_SHARED = (SHARED_STREAM,)
_HEAD = struct.Struct("<4sBBHIIIId")
_MAGIC, _FORMAT, _GUIDED = b"SFLe", 1, 2
_HAS_STREAMS, _HAS_CHECKPOINT, _HAS_SEAL = 1, 2, 4


@dataclass(frozen=True, eq=False)
class Entry:
    """One update: ``g = Σ c[i, j, p] · u(Key(round, j, streams[i], p))``, in that order.

    Every mean, weight and ``1 / (P μ)`` is already in the coefficients. With a guide it is one more
    term, the last, and its coefficient is in its factors.

    Attributes
    ----------
    round : int
        Round of the update; increases along a journal.
    lr : float
        Learning rate, float64, in ``0 .. 1e6``.
    streams : tuple of int
        ``(0,)`` for shared directions, else the clients' streams, increasing.
    steps, probes : int
        Mini-batches per exchange and probes per mini-batch, ≥ 1.
    coefficients : numpy.ndarray
        float32 ``[len(streams), steps, probes]``, at most ±1e12; kept as a read-only copy.
    checkpoint : bytes
        Digest of the parameters after this entry (32 bytes), or empty.
    guide : Guide, optional
        A direction that the entry itself brings.
    seal : bytes
        16 bytes without which the round's directions are not known (`sfl_flower.zo.seal`), or
        empty.

    Raises
    ------
    JournalError
        If a field is outside its range.
    """

    round: int
    lr: float
    streams: tuple[int, ...]
    steps: int
    probes: int
    coefficients: NDArray[np.float32]
    checkpoint: bytes = b""
    guide: Guide | None = None
    seal: bytes = b""

    def __post_init__(self) -> None:
        _check_fields(self)
        with np.errstate(over="ignore"):
            values = np.array(self.coefficients, dtype=np.float32, order="C")
        _check_values(self, values)
        values.setflags(write=False)
        object.__setattr__(self, "coefficients", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    @property
    def scalar_bytes(self) -> int:
        """Bytes of the coefficients on the wire."""
        return 4 * self.coefficients.size

    @property
    def key_bytes(self) -> int:
        """Bytes of what names directions: streams, none if shared, a guide and a seal."""
        streams = 0 if self.streams == _SHARED else 4 * len(self.streams)
        return streams + (self.guide.nbytes if self.guide else 0) + len(self.seal)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole encoded entry."""
        return _HEAD.size + self.key_bytes + self.scalar_bytes + len(self.checkpoint)

    def keys(self, parts: int = 1) -> Iterator[Key]:
        """Yield the keys of the directions in the order of the coefficients.

        Parameters
        ----------
        parts : int
            Coefficients of a direction; more than one where channels are told apart.
        """
        for stream in self.streams:
            for step in range(self.steps):
                yield from step_keys(self.round, step, stream, self.probes // parts)

    def encode(self) -> bytes:
        """Return the canonical bytes (format: ``docs/journal.md``)."""
        shared = self.streams == _SHARED
        flags = (0 if shared else _HAS_STREAMS) | (_HAS_CHECKPOINT if self.checkpoint else 0)
        flags |= _HAS_SEAL if self.seal else 0
        counts = (self.round, len(self.streams), self.steps, self.probes)
        return b"".join(
            (
                _HEAD.pack(_MAGIC, _GUIDED if self.guide else _FORMAT, flags, 0, *counts, self.lr),
                b"" if shared else np.asarray(self.streams, dtype="<u4").tobytes(),
                self.coefficients.astype("<f4", copy=False).tobytes(),
                self.guide.encode() if self.guide else b"",
                self.seal,
                self.checkpoint,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """Read one entry that fills ``data`` exactly.

        Raises
        ------
        WireError
            If the bytes are not the canonical form of a legal entry.
        """
        entry, end = cls.decode_from(data, 0)
        if end != len(data):
            raise WireError(f"A journal entry has {len(data) - end} bytes too many.")
        return entry

    @classmethod
    def decode_from(cls, data: bytes, offset: int) -> tuple[Entry, int]:
        """Read one entry at ``offset``; return it and the offset after it.

        Sizes are checked against the bytes that are there before anything is allocated.

        Raises
        ------
        WireError
            As `decode`.
        """
        guided, round_, streams, steps, probes, lr, flags = _head(data, offset)
        at = offset + _HEAD.size
        _, _, end = entry_bytes(data, offset)
        count = streams * steps * probes
        after_streams = at + (4 * streams if flags & _HAS_STREAMS else 0)
        after_values = after_streams + 4 * count
        after_seal = end - (DIGEST_BYTES if flags & _HAS_CHECKPOINT else 0)
        after_guide = after_seal - (RUN_KEY_BYTES if flags & _HAS_SEAL else 0)
        names: Sequence[int] = _SHARED
        if flags & _HAS_STREAMS:
            names = tuple(np.frombuffer(data, "<u4", streams, at).tolist())
            if names == _SHARED:
                raise WireError("A journal entry spells out the shared stream; it is implied.")
        values = np.frombuffer(data, "<f4", count, after_streams).reshape(streams, steps, probes)
        guide = _guide(data[after_values:after_guide]) if guided else None
        try:
            rest = (values, data[after_seal:end], guide, data[after_guide:after_seal])
            entry = cls(round_, lr, tuple(names), steps, probes, *rest)
        except JournalError as error:
            raise WireError(f"A received journal entry is not legal: {error}") from error
        return entry, end


def entry_bytes(data: bytes, offset: int) -> tuple[int, int, int]:
    """Return the bytes of what names directions and of coefficients of an entry, and its end.

    Parameters
    ----------
    data : bytes
        Encoded entries.
    offset : int
        Where the entry begins.

    Raises
    ------
    WireError
        If these are not the bytes of an entry.
    """
    guided, _, streams, steps, probes, _, flags = _head(data, offset)
    keys = 4 * streams if flags & _HAS_STREAMS else 0
    scalars = 4 * streams * steps * probes
    end = offset + _HEAD.size + keys + scalars
    if guided:
        from sfl_flower.zo.guide import guide_bytes

        guide = guide_bytes(data, end)
        keys, end = keys + guide, end + guide
    if flags & _HAS_SEAL:
        keys, end = keys + RUN_KEY_BYTES, end + RUN_KEY_BYTES
    end += DIGEST_BYTES if flags & _HAS_CHECKPOINT else 0
    if end > len(data):
        raise WireError(f"A journal entry is cut short by {end - len(data)} bytes.")
    return keys, scalars, end


def _guide(data: bytes) -> Guide:
    from sfl_flower.zo.guide import Guide

    return Guide.decode(data)


def _head(data: bytes, offset: int) -> tuple[bool, int, int, int, int, float, int]:
    """Return of an encoded entry whether it has a guide, round, streams, steps, …, lr, flags."""
    if len(data) - offset < _HEAD.size:
        raise WireError("A journal entry is cut short before the end of its head.")
    magic, form, flags, zero, round_, streams, steps, probes, lr = _HEAD.unpack_from(data, offset)
    if magic != _MAGIC or form not in (_FORMAT, _GUIDED) or flags > 7 or zero:
        raise WireError("These bytes are not a journal entry of format 1 or 2.")
    count = streams * steps * probes
    if not 1 <= count <= MAX_COEFFICIENTS:
        raise WireError(
            f"A journal entry declares {count} coefficients; legal: 1..{MAX_COEFFICIENTS}."
        )
    if not flags & _HAS_STREAMS and streams != 1:
        raise WireError("A journal entry declares several streams and names none.")
    return form == _GUIDED, round_, streams, steps, probes, lr, flags


def _check_fields(entry: Any) -> None:
    where = f"Entry of round {entry.round!r}"
    if type(entry.round) is not int or not 0 <= entry.round < _LIMIT:
        raise JournalError(f"{where}: the round must be an int in 0 .. 2**32 - 1.")
    if not isinstance(entry.lr, float) or not 0.0 <= entry.lr <= MAX_LR:
        raise JournalError(f"{where}: lr is {entry.lr!r}; it must be a float in 0 .. {MAX_LR:g}.")
    streams = entry.streams
    legal = isinstance(streams, tuple) and all(
        type(stream) is int and 0 <= stream < _LIMIT for stream in streams
    )
    if not legal or not streams or list(streams) != sorted(set(streams)):
        raise JournalError(f"{where}: streams must be increasing ints in 0 .. 2**32 - 1.")
    for name in ("steps", "probes"):
        value = getattr(entry, name)
        if type(value) is not int or not 1 <= value <= MAX_COEFFICIENTS:
            raise JournalError(
                f"{where}: {name} is {value!r}; it must be an int in 1 .. {MAX_COEFFICIENTS}."
            )
    if len(streams) * entry.steps * entry.probes > MAX_COEFFICIENTS:
        raise JournalError(f"{where}: more than {MAX_COEFFICIENTS} coefficients.")
    if not isinstance(entry.checkpoint, bytes) or len(entry.checkpoint) not in (0, DIGEST_BYTES):
        raise JournalError(f"{where}: a checkpoint is {DIGEST_BYTES} bytes, or none.")
    if not isinstance(entry.seal, bytes) or len(entry.seal) not in (0, RUN_KEY_BYTES):
        raise JournalError(f"{where}: a seal is {RUN_KEY_BYTES} bytes, or none.")


def _check_values(entry: Entry, values: NDArray[np.float32]) -> None:
    shape = (len(entry.streams), entry.steps, entry.probes)
    if values.shape != shape:
        raise JournalError(
            f"Entry of round {entry.round}: coefficients have shape {values.shape}, "
            f"streams x steps x probes is {shape}."
        )
    if not (np.abs(values) <= MAX_COEFFICIENT).all():
        raise JournalError(
            f"Entry of round {entry.round}: a coefficient is not finite or beyond "
            f"±{MAX_COEFFICIENT:g}; leave that reply out of the mean."
        )
