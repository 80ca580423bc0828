"""How a client half and an auxiliary head come down: whole, or as what changed since a version.

A client that keeps what it was sent need not be sent all of it again.  Changes are blocks, one
after another: the walks of a round (`sfl_flower.zo.walks`), or differences of the trained
parameters in one of the encodings of smashed data.  Everybody adds the same decoded numbers, so
everybody holds the same bits, and a digest names them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.split import buffers_of, travelling_state
from sfl_flower.wire.encodings import LONGEST, SAYS, encoding_of
from sfl_flower.wire.fields import Codec
from sfl_flower.wire.padding import MAX_BYTES
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.weights import pack_state, packed_digest

__all__ = [
    "SCALARS",
    "WEIGHTS",
    "Changes",
    "Way",
    "block",
    "blocks",
    "change_bytes",
    "check_way",
    "decode_difference",
    "encode_difference",
    "flat_values",
    "followed_state",
    "held_digest",
]

WEIGHTS, SCALARS = "weights", "scalars"
"""All of it in every request; the scalars of the walks whose mean it is.  Any other way is the name
of an encoding, in which differences travel."""
_TAGS = {1: SCALARS, 2: "client", 3: "head"}
_CATEGORIES = {"client": "weights", "head": "auxiliary"}
_BLOCK = struct.Struct("<BI")


def check_way(name: str, value: str, more: tuple[str, ...] = ()) -> None:
    """Refuse a way down that there is not.

    Parameters
    ----------
    name, value : str
        The option and what it is.
    more : tuple of str
        What it may be beside "weights" and the encodings.

    Raises
    ------
    ConfigError
        With what it may be.
    """
    if value in (WEIGHTS, *more):
        return
    said = f"{name} is '{value}'; it must be {', '.join((WEIGHTS, *more))} or an encoding: {SAYS}."
    try:
        encoding = encoding_of(value, name)
    except ConfigError as error:
        raise ConfigError(said) from error
    # Noise, of which nothing can be compressed.
    noise = np.random.default_rng(0).standard_normal((1, 4096)).astype(np.float32)
    if sum(part.nbytes for part in encoding.encode(noise, "smashed").values()) >= noise.nbytes:
        raise ConfigError(
            f"{name} is '{value}': its differences are no fewer bytes than the weights; set {name} "
            f"to {WEIGHTS}, or to an encoding of fewer bytes such as int8."
        )


def _way() -> Codec:
    def read(reader: Reader, name: str) -> str:
        value = reader.text(name, longest=LONGEST)
        try:
            check_way(name, value, (SCALARS,))
        except ConfigError as error:
            raise reader.fail(f"has {name}={value!r}, which is no way down") from error
        return value

    return Codec(read, standing=True)


Way = Annotated[str, _way()]
"""How a half comes down: "weights", "scalars" or the name of an encoding."""


def followed_state(module: nn.Module) -> dict[str, Tensor]:
    """Return what changes tell of: views of the trained float32 parameters, by name.

    Buffers and parameters of other dtypes travel whole in every request.
    """
    state = travelling_state(module)
    others = buffers_of(module, state)
    return {k: v for k, v in state.items() if k not in others and v.dtype == torch.float32}


def flat_values(state: Mapping[str, Tensor]) -> np.ndarray:
    """Return float32 tensors as one flat copy, in the order of their sorted names."""
    packed = pack_state(state)
    return np.array(packed["float32"]) if packed else np.zeros(0, np.float32)


def held_digest(held: Mapping[str, np.ndarray]) -> str:
    """Return what names the flat parameters that a client holds, 32 hexadecimal digits."""
    return packed_digest(held)


def block(kind: str, data: bytes) -> bytes:
    """Return one change.

    Parameters
    ----------
    kind : {"scalars", "client", "head"}
        Walks of a round, or differences of that half.
    data : bytes
        `RoundOfWalks.encode`, or what `encode_difference` gave.
    """
    tag = next(tag for tag, name in _TAGS.items() if name == kind)
    return _BLOCK.pack(tag, len(data)) + data


def blocks(changes: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the kind and the data of each change, in their order.

    Raises
    ------
    WireError
        If these are no changes.
    """
    at = 0
    while at < len(changes):
        if len(changes) - at < _BLOCK.size:
            raise WireError("Changes of weights are cut short before the end of a head.")
        tag, length = _BLOCK.unpack_from(changes, at)
        at += _BLOCK.size
        if tag not in _TAGS or at + length > len(changes):
            raise WireError(
                f"Changes of weights hold a block of kind {tag} and {length} bytes; kinds are "
                f"1 to {len(_TAGS)}, and {len(changes) - at} bytes are left."
            )
        yield _TAGS[tag], changes[at : at + length]
        at += length


class Changes(bytes):
    """Changes that several recipients are sent: what the ledger books of them is counted once."""

    @cached_property
    def booked(self) -> dict[str, int]:
        """What `change_bytes` gives."""
        return _change_bytes(self)


def change_bytes(changes: bytes) -> dict[str, int]:
    """Return how many bytes of changes are of which of the ledger's categories.

    Framing is control.  Of what is no change nothing is booked: whoever reads it refuses it.
    """
    return changes.booked if isinstance(changes, Changes) else _change_bytes(changes)


def _change_bytes(changes: bytes) -> dict[str, int]:
    from sfl_flower.zo.walks import RoundOfWalks  # for few clients

    found: dict[str, int] = {}
    try:
        for kind, data in blocks(changes):
            own = _CATEGORIES.get(kind)
            told = {own: len(data)} if own else RoundOfWalks.bytes_of(data)
            for category, count in told.items():
                found[category] = found.get(category, 0) + count
    except WireError:
        return {}
    return found


def encode_difference(way: str, difference: np.ndarray) -> bytes:
    """Return a difference of flat parameters as it travels.

    Parameters
    ----------
    way : str
        Name of the encoding. Integers go to the nearest code: what is lost is made up for later.
    difference : numpy.ndarray
        float32, shape [d].

    Raises
    ------
    WireError
        If a value cannot be written so.
    """
    encoding = encoding_of(way)
    parts = encoding.encode(difference.reshape(1, -1), "downlink") if difference.size else {}
    found = []
    for suffix in encoding.parts if parts else ():
        part = np.ascontiguousarray(parts[suffix])
        found.append(struct.pack(f"<B{part.ndim}I", part.ndim, *part.shape))
        found.append(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return b"".join(found)


def decode_difference(way: str, data: bytes, size: int) -> np.ndarray:
    """Return the difference that arrived, float32, shape [size].

    Raises
    ------
    WireError
        If it is none of so many parameters, or a value is not finite.
    """
    if not size and not data:
        return np.zeros(0, np.float32)
    encoding, parts, at = encoding_of(way), dict[str, np.ndarray](), 0
    for suffix, dtype in encoding.parts.items():
        parts[suffix], at = _part(data, at, np.dtype(dtype).newbyteorder("<"))
    if at != len(data):
        raise WireError(f"A difference of weights has {len(data) - at} bytes too many.")
    rows = encoding.decode(parts)
    if rows.shape != (1, size):
        raise WireError(
            f"A difference of weights is of {rows.size} values, this model has {size}; the two "
            "sides run different models."
        )
    if not np.isfinite(rows).all():
        raise WireError("A difference of weights holds a value that is not finite.")
    return rows.reshape(size)


def _part(data: bytes, at: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Return an array of an encoding at an offset, and the offset after it."""
    ndim = data[at] if at < len(data) else 0
    start = at + 1 + 4 * ndim
    shape = np.frombuffer(data[at + 1 : start], "<u4").tolist() if start <= len(data) else []
    count = math.prod(shape) * dtype.itemsize
    whole = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if not 1 <= ndim <= 32 or len(shape) != ndim or whole > MAX_BYTES or start + count > len(data):
        raise WireError("A difference of weights is cut short, or not in this encoding.")
    part = np.frombuffer(data[start : start + count], dtype).reshape(shape)
    if part.dtype.kind == "f" and not np.isfinite(part).all():
        raise WireError("A difference of weights holds a value that is not finite.")
    return part, start + count
