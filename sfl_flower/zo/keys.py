"""Keys: the few integers that name a direction, and the 128-bit cipher key derived from them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

from sfl_flower.errors import ConfigError

__all__ = [
    "RUN_KEY_BYTES",
    "SHARED_STREAM",
    "Key",
    "client_stream",
    "philox_key",
    "run_key",
    "step_keys",
]

RUN_KEY_BYTES = 16
SHARED_STREAM = 0
"""The stream of directions that the clients of a round share."""
_LIMIT = 1 << 32
_PERSON = b"sfl.direction.1"
_RUN_PERSON = b"sfl.run-key.1"


@dataclass(frozen=True, order=True)
class Key:
    """Names one direction within a run.

    Attributes
    ----------
    round : int
        Round of the journal entry.
    step : int
        Mini-batch within the exchange (or local step).
    stream : int
        `SHARED_STREAM`, or the `client_stream` of a client with directions of its own.
    probe : int
        Index of the probe, ``p`` in the papers.

    Raises
    ------
    ConfigError
        If a field is not an integer in ``0 .. 2**32 - 1``.
    """

    round: int
    step: int = 0
    stream: int = SHARED_STREAM
    probe: int = 0

    def __post_init__(self) -> None:
        for name in ("round", "step", "stream", "probe"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < _LIMIT:
                raise ConfigError(
                    f"Key.{name} is {value!r}; it must be an int in 0 .. 2**32 - 1 "
                    "(it is written on the wire as an unsigned 32-bit number)."
                )


def client_stream(partition: int) -> int:
    """Return the stream of a client's own directions: 1 and up, for 0 is `SHARED_STREAM`."""
    return partition + 1


def step_keys(round: int, step: int, stream: int, probes: int) -> list[Key]:
    """Return the keys of the directions of one mini-batch or local step, in their order.

    Parameters
    ----------
    round, step, stream : int
        As in `Key`.
    probes : int
        P, their number.
    """
    return [Key(round, step, stream, probe) for probe in range(probes)]


def run_key(*parts: int | str | bytes) -> bytes:
    """Derive the 16-byte key of a run from anything that identifies it (seed, task, method).

    Parts are typed and length-prefixed before hashing, so ``("ab", "c")`` and ``("a", "bc")``,
    or ``1`` and ``"1"``, give different keys.

    Raises
    ------
    ConfigError
        If a part is not an int, a str or bytes.
    """
    state = blake2b(digest_size=RUN_KEY_BYTES, person=_RUN_PERSON)
    for part in parts:
        if type(part) is int:
            tag, body = b"i", str(part).encode("ascii")
        elif isinstance(part, str):
            tag, body = b"s", part.encode("utf-8")
        elif isinstance(part, bytes):
            tag, body = b"b", part
        else:
            raise ConfigError(
                f"run_key got a {type(part).__name__}; use int, str or bytes so that the key "
                "is the same on every machine."
            )
        state.update(tag + struct.pack("<Q", len(body)) + body)
    return state.digest()


def philox_key(run: bytes, key: Key, tag: int) -> int:
    """Return the 128-bit Philox key of a direction (format: ``docs/directions.md``).

    Parameters
    ----------
    run : bytes
        From `run_key`, 16 bytes.
    key : Key
        Of the direction.
    tag : int
        Of the law.

    Raises
    ------
    ConfigError
        If ``run`` is not 16 bytes.
    """
    if len(run) != RUN_KEY_BYTES:
        raise ConfigError(f"run_key must be {RUN_KEY_BYTES} bytes; make one with zo.run_key(seed).")
    message = run + struct.pack("<BQQQQ", tag, key.round, key.step, key.stream, key.probe)
    return int.from_bytes(blake2b(message, digest_size=16, person=_PERSON).digest(), "little")
