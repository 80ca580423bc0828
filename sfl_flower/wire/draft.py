"""A message while it is written: what its records hold, and how many bytes of which category."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from sfl_flower.wire.encodings import encoding_of
from sfl_flower.wire.labels import smallest
from sfl_flower.wire.padding import LENGTHS, POSITIONS, shorten
from sfl_flower.wire.terms import TERMS, terms_digest

__all__ = ["ARRAYS", "CONFIG", "METRICS", "PLAIN", "PROTOCOL", "RAW", "Draft", "Encodings"]

PROTOCOL = 4

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records of a message; Flower's mods and wrappers expect one of each kind."""


RAW = "raw"
"""Flower's `stype` of an array that travels without a header: its bytes in C order, little-endian,
of the dtype and shape that Flower's record states anyway."""


class Encodings(NamedTuple):
    """How smashed data and cut gradients travel in a run, names of `encoding_of`."""

    smashed: str = "float32"
    gradients: str = "float32"


PLAIN = Encodings()


class Draft:
    """Collects the entries of a message, and books the bytes of each as it is written.

    Parameters
    ----------
    encodings : Encodings
        How smashed data and cut gradients travel; a message that says so itself sets it.
    spoken : bool
        Whether the receiver knows which protocol this side speaks.
    held : collection of bytes
        Names of what the receiver is known to hold: terms, and what is carried to it once.

    Attributes
    ----------
    booked : dict[str, int]
        Bytes by ledger category so far, control left out.
    standing : bool
        Whether what is being written are the terms of the request, the same in every round.
    terms : dict[str, Any]
        The terms so far.
    once : set[bytes]
        Names of what the receiver holds when it has this message: what is carried once.
    """

    def __init__(
        self,
        encodings: Encodings = PLAIN,
        spoken: bool = False,
        held: Collection[bytes] = (),
    ) -> None:
        self.encodings = encodings
        self._held = held
        self.once: set[bytes] = set()
        self.booked: dict[str, int] = {}
        self._arrays: dict[str, Array] = {}
        self.standing = False
        self.terms: dict[str, Any] = {} if spoken else {"protocol": PROTOCOL}
        self._config: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}

    def setting(self, name: str, value: Any) -> None:
        """Write a number, a truth value, a text or a few bytes."""
        (self.terms if self.standing else self._config)[name] = value

    def brings(self, name: bytes) -> bool:
        """Note that the message names what is carried once; tell whether it has to come along."""
        self.once.add(name)
        return name not in self._held

    def metric(self, name: str, value: int) -> None:
        """Write a number that Flower's own tools may read."""
        self._metrics[name] = value

    def array(self, name: str, value: np.ndarray, category: str = "", header: bool = False) -> None:
        """Write an array; its values are booked, its name and header are control.

        Parameters
        ----------
        name : str
            The array's name.
        value : numpy.ndarray
            The values.
        category : str
            What they are booked as, empty for control.
        header : bool
            Whether it travels as numpy writes it, which Flower's own tools can read, in 128 bytes
            more.
        """
        plain = np.ascontiguousarray(value)
        if header:
            self._arrays[name] = Array(plain)
        else:
            data = plain.astype(plain.dtype.newbyteorder("<"), copy=False).tobytes()
            self._arrays[name] = Array(str(plain.dtype), plain.shape, RAW, data)
        self.book(category, value.nbytes)

    def samples(self, name: str, value: np.ndarray, category: str) -> None:
        """Write an array of samples without its padding, where that saves bytes.

        Parameters
        ----------
        name : str
            The array's name.
        value : numpy.ndarray
            float32 of smashed data or cut gradients, which are encoded, or int64 of labels, which
            travel as the smallest integers that hold them.
        category : {"smashed", "gradients", "labels"}
            What it is.

        Raises
        ------
        WireError
            If a value cannot be sent in the run's encoding.
        """
        if category == "labels":
            value = smallest(value)
        short = shorten(name, value)
        if short is not None:
            value = short.rows
            self.array(name + LENGTHS, short.lengths, category)
            self.setting(name + POSITIONS, short.positions)
        encoding = self.encodings._asdict().get(category, "")
        parts = encoding_of(encoding).encode(value, category) if encoding else {"": value}
        for suffix, part in parts.items():
            self.array(name + suffix, part, category)

    def book(self, category: str, count: int) -> None:
        """Add bytes to a category; those of none are control."""
        if category and count:
            self.booked[category] = self.booked.get(category, 0) + count

    def content(self, brief: bool = False) -> RecordDict:
        """Return the content of the Flower message.

        Parameters
        ----------
        brief : bool
            Whether the receiver knows the terms, so that their digest is enough.
        """
        terms = {TERMS: terms_digest(self.terms)} if brief else self.terms
        return RecordDict(
            {
                ARRAYS: ArrayRecord(self._arrays),
                CONFIG: ConfigRecord({**terms, **self._config}),
                METRICS: MetricRecord(self._metrics),
            }
        )
