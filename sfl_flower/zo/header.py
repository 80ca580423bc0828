"""The header of a journal: all that an entry's meaning depends on, and the start of the chain."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
from torch import Tensor

from sfl_flower.errors import ConfigError, JournalError, WireError
from sfl_flower.zo.entry import DIGEST_BYTES
from sfl_flower.zo.keys import RUN_KEY_BYTES
from sfl_flower.zo.laws import LAWS, find_law
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.vector import name_and_shape

__all__ = ["JournalHeader", "chain", "header_bytes", "manifest_digest", "params_digest"]

_HEAD = struct.Struct("<4sBBH16s41s32s32s")
_CONE = struct.Struct("<d")
_COUNT = struct.Struct("<I")
_MAGIC, _PLAIN, _WITH_CONE, _BY_CHANNEL = b"SFLh", 1, 2, 3


def header_bytes(data: bytes) -> int:
    """Return the length of the header that data begin with, by its format."""
    if data[4:5] == bytes([_WITH_CONE]):
        return _HEAD.size + _CONE.size
    if data[4:5] == bytes([_BY_CHANNEL]):
        count = int.from_bytes(data[_HEAD.size : _HEAD.size + _COUNT.size], "little")
        return _HEAD.size + _COUNT.size + -(-count // 8)
    return _HEAD.size


def params_digest(theta: Tensor) -> bytes:
    """Return the 32-byte digest of a flat float32 vector (its little-endian bytes)."""
    data = np.ascontiguousarray(theta.detach().cpu().numpy(), dtype="<f4")
    return blake2b(data.data, digest_size=DIGEST_BYTES, person=b"sfl.params.1").digest()


def manifest_digest(manifest: bytes, basis: Mapping[str, Tensor] | None = None) -> bytes:
    """Return the 32-byte digest of `ParameterVector.manifest`, and of what the vector moves along.

    Parameters
    ----------
    manifest : bytes
        Names and shapes.
    basis : mapping of str to Tensor, optional
        Float32 tensors by name that give the vector its meaning: the directions of subspaces.
        Without any the digest is of the manifest alone.
    """
    found = blake2b(manifest, digest_size=DIGEST_BYTES, person=b"sfl.manifest.1")
    for name in sorted(basis or {}):
        value = np.ascontiguousarray((basis or {})[name].detach().cpu().numpy(), dtype="<f4")
        found.update(name_and_shape(name, value.shape))
        found.update(value.data)
    return found.digest()


def chain(digest: bytes, entry: bytes) -> bytes:
    """Return the running digest after one encoded entry."""
    return blake2b(digest + entry, digest_size=DIGEST_BYTES, person=b"sfl.journal.1").digest()


@dataclass(frozen=True)
class JournalHeader:
    """What is fixed for a whole journal.

    Attributes
    ----------
    run_key : bytes
        16 bytes, `sfl_flower.zo.run_key`.
    manifest_digest : bytes
        Digest of names and shapes, and of the directions of subspaces, 32 bytes.
    params_digest : bytes
        Digest of the initial parameters, 32 bytes.
    law : str
        Law of the directions.
    optimizer : OptimizerSpec
        The client optimiser.
    apart : tuple of bool
        Which tensors are told apart by channel (`sfl_flower.zo.channels`), in the order of the
        manifest; empty where none is.

    Raises
    ------
    JournalError
        If a digest or key has another length, the law is unknown, or a cone meets channels.
    """

    run_key: bytes
    manifest_digest: bytes
    params_digest: bytes
    law: str = "rademacher"
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    apart: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        for name, length in (
            ("run_key", RUN_KEY_BYTES),
            ("manifest_digest", DIGEST_BYTES),
            ("params_digest", DIGEST_BYTES),
        ):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != length:
                raise JournalError(f"Journal header: {name} must be {length} bytes.")
        if self.law not in LAWS:
            raise JournalError(
                f"Journal header: unknown law {self.law!r}; use one of {', '.join(LAWS)}."
            )
        if self.apart and (self.optimizer.cone or not any(self.apart)):
            raise JournalError(
                "Journal header: channels need a tensor that has them, and no cone; use one or the "
                "other."
            )

    def encode(self) -> bytes:
        """Return the canonical bytes: 129, 8 more for a cone, a bit a tensor for channels."""
        cone = self.optimizer.cone
        head = _HEAD.pack(
            _MAGIC,
            _WITH_CONE if cone else _BY_CHANNEL if self.apart else _PLAIN,
            find_law(self.law).tag,
            0,
            self.run_key,
            self.optimizer.encode(),
            self.manifest_digest,
            self.params_digest,
        )
        if self.apart:
            bits = np.packbits(self.apart, bitorder="little").tobytes()
            return head + _COUNT.pack(len(self.apart)) + bits
        return head + _CONE.pack(cone) if cone else head

    @classmethod
    def decode(cls, data: bytes) -> JournalHeader:
        """Read what `encode` wrote.

        Raises
        ------
        WireError
            If the bytes are not a legal header.
        """
        wanted = header_bytes(data)
        if len(data) != wanted:
            raise WireError(f"A journal header is {wanted} bytes; these are {len(data)}.")
        magic, form, law, zero, run, optimizer, manifest, params = _HEAD.unpack_from(data)
        cone = _CONE.unpack_from(data, _HEAD.size)[0] if form == _WITH_CONE else 0.0
        if magic != _MAGIC or form not in (_PLAIN, _WITH_CONE, _BY_CHANNEL) or zero:
            raise WireError("These bytes are not a journal header of format 1, 2 or 3.")
        if form == _WITH_CONE and cone == 0.0:
            raise WireError("A journal header of format 2 has no cone; it must be of format 1.")
        try:
            name, spec = find_law(law).name, replace(OptimizerSpec.decode(optimizer), cone=cone)
        except ConfigError as error:
            raise WireError(f"A received journal header is not legal: {error}") from error
        apart = _bits(data[_HEAD.size :]) if form == _BY_CHANNEL else ()
        return cls(run, manifest, params, name, spec, apart)

    def digest(self) -> bytes:
        """Return the start of the digest chain, ``d_0``."""
        return blake2b(self.encode(), digest_size=DIGEST_BYTES, person=b"sfl.header.1").digest()


def _bits(data: bytes) -> tuple[bool, ...]:
    """Read a count and as many bits.

    Raises
    ------
    WireError
        If none of them is set, or one beyond them.
    """
    (count,) = _COUNT.unpack_from(data)
    bits = np.unpackbits(np.frombuffer(data[_COUNT.size :], np.uint8), bitorder="little")
    if not bits[:count].any() or bits[count:].any():
        raise WireError("A journal header of format 3 names no tensor, or one beyond the last.")
    return tuple(bool(bit) for bit in bits[:count])
