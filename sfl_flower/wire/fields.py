"""How a field of a message travels: its codec reads and writes it, and books its bytes.

A message declares each field once, with its codec in the annotation: ``steps: Steps``, or
``share: Annotated[float, number(0.0, 1.0)]``.  What several messages declare alike has a name at
the end.  Without a codec a bool is a `flag`, an int a `whole` from 0 on and a str a `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from sfl_flower.errors import ConfigError
from sfl_flower.wire.draft import Draft
from sfl_flower.wire.encodings import LONGEST as LONGEST_ENCODING
from sfl_flower.wire.encodings import SAYS, encoding_of
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.weights import WEIGHT_DTYPES, Carried, Packed, packed_digest

__all__ = [
    "BatchSize",
    "Codec",
    "CutGradients",
    "Directions",
    "EncodingName",
    "HeadWeights",
    "Labels",
    "Loss",
    "Rate",
    "Samples",
    "Scalars",
    "Share",
    "Sizes",
    "Smashed",
    "Steps",
    "Trained",
    "Version",
    "Weights",
    "array",
    "carried",
    "flag",
    "group",
    "hexadecimal",
    "metric",
    "number",
    "octets",
    "samples",
    "text",
    "whole",
]

LARGEST = 2**63 - 1


def _always(told: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Codec:
    """How a field travels.

    Attributes
    ----------
    read : callable
        Gives the checked value of this name, or raises `WireError`.
    write : callable
        Puts a value under a name; as a setting unless told otherwise.
    name : str
        What the field is called on the wire, empty for its own name with dashes.
    travels : callable
        Tells from the fields before it whether the field travels, else it has its default.
    standing : bool
        Whether the field is the same in every round, and so among the terms of the request.
    implied : callable, optional
        Gives from the fields before it the value that is meant where none came along; that value
        does not travel.
    """

    read: Callable[[Reader, str], Any]
    write: Callable[[Draft, str, Any], None] = Draft.setting
    name: str = ""
    travels: Callable[[Mapping[str, Any]], bool] = _always
    standing: bool = False
    implied: Callable[[Mapping[str, Any]], Any] | None = None

    def called(self, name: str) -> Codec:
        """Return this codec for a field with another name on the wire."""
        return replace(self, name=name)

    def when(self, travels: Callable[[Mapping[str, Any]], bool]) -> Codec:
        """Return this codec for a field that travels in some messages only."""
        return replace(self, travels=travels)

    def stands(self) -> Codec:
        """Return this codec for a field that is the same in every round."""
        return replace(self, standing=True)

    def unless(self, implied: Callable[[Mapping[str, Any]], Any]) -> Codec:
        """Return this codec for a field that travels where it is not what others imply."""
        return replace(self, implied=implied)


def flag() -> Codec:
    """Return the codec of a truth value."""
    return Codec(Reader.boolean)


def whole(low: int = 0, high: int = LARGEST) -> Codec:
    """Return the codec of a whole number within [low, high]."""
    return Codec(lambda reader, name: reader.integer(name, low, high))


def number(low: float, high: float) -> Codec:
    """Return the codec of a finite number within [low, high]."""
    return Codec(lambda reader, name: reader.number(name, low, high))


def text(choices: Collection[str] | None = None, longest: int = 4096, empty: str = "") -> Codec:
    """Return the codec of a text, for the empty one of which `empty` stands on the wire."""

    def read(reader: Reader, name: str) -> str:
        value = reader.text(name, choices, longest)
        return "" if value == empty else value

    return Codec(read, lambda draft, name, value: draft.setting(name, value or empty))


def encoding_name() -> Codec:
    """Return the codec of the name of an encoding."""

    def read(reader: Reader, name: str) -> str:
        value = reader.text(name, longest=LONGEST_ENCODING)
        try:
            return encoding_of(value).name
        except ConfigError as error:
            raise reader.fail(f"has {name}={value!r}, expected {SAYS}") from error

    return Codec(read)


def hexadecimal() -> Codec:
    """Return the codec of a digest in hex, which names files on the client; bytes on the wire."""
    return Codec(
        Reader.hexadecimal, lambda draft, name, value: draft.setting(name, bytes.fromhex(value))
    )


def metric(low: int = 0, high: int = LARGEST) -> Codec:
    """Return the codec of a whole number within [low, high] in the metrics."""
    return Codec(lambda reader, name: reader.metric(name, low, high), Draft.metric)


def array(
    dtype: str,
    category: str = "",
    *,
    ndim: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Codec:
    """Return the codec of an array of this dtype, and of these dimensions if given."""
    return Codec(
        lambda reader, name: reader.array(name, dtype, ndim=ndim, shape=shape, category=category),
        lambda draft, name, value: draft.array(name, value, category),
    )


def samples(category: str) -> Codec:
    """Return the codec of an array of samples: smashed data, cut gradients or labels."""
    return Codec(
        lambda reader, name: reader.samples(name, category),
        lambda draft, name, value: draft.samples(name, value, category),
    )


def group(prefix: str, category: Callable[[str], str] | str) -> Codec:
    """Return the codec of packed weights, each array under `prefix` and the name of its dtype.

    Parameters
    ----------
    prefix : str
        What the names on the wire begin with.
    category : str or callable
        The ledger's category, or what gives it for what follows the prefix.
    """
    of = (lambda key: category) if isinstance(category, str) else category

    def write(draft: Draft, name: str, value: Packed) -> None:
        for key, part in value.items():
            draft.array(name + key, part, of(key), header=True)

    return Codec(lambda reader, name: reader.group(name, WEIGHT_DTYPES, of), write, name=prefix)


def carried(prefix: str) -> Codec:
    """Return the codec of `Carried`: a digest, and arrays under `prefix` where they come along."""

    def write(draft: Draft, name: str, value: Carried) -> None:
        draft.setting(name, value.digest)
        if draft.brings(bytes.fromhex(value.digest)):
            for key, part in value.arrays.items():
                draft.array(prefix + key, part, "weights")

    def read(reader: Reader, name: str) -> Carried:
        digest = reader.text(name, longest=32)
        arrays = reader.group(prefix, WEIGHT_DTYPES, lambda key: "weights")
        if arrays and packed_digest(arrays) != digest:
            raise reader.fail(f"has arrays '{prefix}' that do not match their digest")
        return Carried(digest, arrays)

    return Codec(read, write)


def octets(parts: Callable[[bytes], Mapping[str, int]] = lambda data: {}) -> Codec:
    """Return the codec of bytes, an array of uint8 on the wire.

    Parameters
    ----------
    parts : callable
        Gives how many of the bytes are of which of the ledger's categories; the rest is control.
    """

    def write(draft: Draft, name: str, value: bytes) -> None:
        draft.array(name, np.frombuffer(value, dtype=np.uint8))
        _book(draft, value)

    def read(reader: Reader, name: str) -> bytes:
        value = reader.array(name, "uint8", ndim=1).tobytes()
        _book(reader, value)
        return value

    def _book(side: Draft | Reader, value: bytes) -> None:
        for category, count in parts(value).items():
            side.book(category, count)

    return Codec(read, write)


Version = Annotated[int, whole(low=-1)]
"""The version that a client had before the sync, -1 for none."""
Steps = Annotated[int, whole(low=1, high=1_000_000).stands()]
"""How many steps or mini-batches a request asks for."""
BatchSize = Annotated[int, whole(low=1).stands()]
Rate = Annotated[float, number(0.0, 1e30)]
"""A learning rate."""
Loss = Annotated[float, number(-1e30, 1e30)]
"""The mean loss of a client's mini-batches."""
Share = Annotated[float, number(0.0, 1.0)]
"""A number from 0 to 1 that a client measured."""

EncodingName = Annotated[str, encoding_name()]
"""How smashed data or cut gradients travel."""

Samples = Annotated[int, metric().called("num-examples")]
"""Samples behind a reply."""
Trained = Annotated[int, metric(low=1).called("num-examples")]
"""Samples of all mini-batches of a client that took steps."""

Smashed = Annotated[np.ndarray, samples("smashed")]
"""Smashed data, float32 [n, ...]."""
Labels = Annotated[np.ndarray, samples("labels")]
"""Labels, int64 [n, ...]."""
CutGradients = Annotated[np.ndarray, samples("gradients")]
"""λ, the gradient of each mini-batch's mean loss at z, float32, shape of z."""
Scalars = Annotated[np.ndarray, array("float32", "scalars", ndim=2)]
"""v, float32 [steps or mini-batches, probes]."""
Sizes = Annotated[
    np.ndarray,
    array("int64", ndim=1).unless(lambda told: np.array([len(told["y"])], np.int64)),
]
"""Samples of each mini-batch, int64, summing to n; of one they are those of the labels `y`."""
Weights = Annotated[Packed, group("weights.", "weights")]
"""Packed parameters and buffers of the model, or of the client half where there is a cut."""
Statistics = Annotated[Packed, group("statistics.", "weights")]
"""Packed running statistics of BatchNorm in train mode; none where nothing moves."""
Directions = Annotated[Carried, carried("carried.")]
"""Packed directions of subspaces, or their name alone."""
HeadWeights = Annotated[Packed, group("head.", "auxiliary")]
"""Packed trained parameters and buffers of the auxiliary head."""
