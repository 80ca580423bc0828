"""A message while it is written: what its records hold, and how many bytes of which category."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from sfl_flower.wire.encodings import ENCODINGS
from sfl_flower.wire.padding import LENGTHS, POSITIONS, shorten

__all__ = ["ARRAYS", "CONFIG", "METRICS", "PLAIN", "PROTOCOL", "Draft", "Encodings"]

PROTOCOL = 1

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records of a message; Flower's mods and wrappers expect one of each kind."""


class Encodings(NamedTuple):
    """How smashed data and cut gradients travel in a run, keys of `ENCODINGS`."""

    smashed: str = "float32"
    gradients: str = "float32"


PLAIN = Encodings()


class Draft:
    """Collects the entries of a message, and books the bytes of each as it is written.

    Parameters
    ----------
    encodings : Encodings
        How smashed data and cut gradients travel; a message that says so itself sets it.

    Attributes
    ----------
    booked : dict[str, int]
        Bytes by ledger category so far, control left out.
    """

    def __init__(self, encodings: Encodings = PLAIN) -> None:
        self.encodings = encodings
        self.booked: dict[str, int] = {}
        self._arrays: dict[str, Array] = {}
        self._config: dict[str, Any] = {"protocol": PROTOCOL}
        self._metrics: dict[str, Any] = {}

    def setting(self, name: str, value: Any) -> None:
        """Write a number, a truth value or a text."""
        self._config[name] = value

    def metric(self, name: str, value: int) -> None:
        """Write a number that Flower's own tools may read."""
        self._metrics[name] = value

    def array(self, name: str, value: np.ndarray, category: str = "") -> None:
        """Write an array; its values are booked, its header and name are control."""
        self._arrays[name] = Array(np.ascontiguousarray(value))
        self.book(category, value.nbytes)

    def samples(self, name: str, value: np.ndarray, category: str) -> None:
        """Write an array of samples without its padding, where that saves bytes.

        Parameters
        ----------
        name : str
            The array's name.
        value : numpy.ndarray
            float32 of smashed data or cut gradients, which are encoded, or int64 of labels.
        category : {"smashed", "gradients", "labels"}
            What it is.

        Raises
        ------
        WireError
            If a value cannot be sent in the run's encoding.
        """
        short = shorten(name, value)
        if short is not None:
            value = short.rows
            self.array(name + LENGTHS, short.lengths, category)
            self.setting(name + POSITIONS, short.positions)
        encoding = self.encodings._asdict().get(category, "")
        parts = ENCODINGS[encoding].encode(value, category) if encoding else {"": value}
        for suffix, part in parts.items():
            self.array(name + suffix, part, category)

    def book(self, category: str, count: int) -> None:
        """Add bytes to a category; those of none are control."""
        if category and count:
            self.booked[category] = self.booked.get(category, 0) + count

    def content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return RecordDict(
            {
                ARRAYS: ArrayRecord(self._arrays),
                CONFIG: ConfigRecord(self._config),
                METRICS: MetricRecord(self._metrics),
            }
        )
