"""Keys: the few integers that name a direction, and the 128-bit cipher key derived from them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

from sfl_flower.errors import ConfigError

__all__ = ["LAWS", "RUN_KEY_BYTES", "SHARED_STREAM", "Key", "check_law", "philox_key", "run_key"]

LAWS: tuple[str, ...] = ("rademacher", "gaussian", "sphere")
"""Laws of a direction ``u``; each has ``E[u uᵀ] = I``. The index in this tuple is the wire tag."""

RUN_KEY_BYTES = 16
SHARED_STREAM = 0
_LIMIT = 1 << 32
_PERSON = b"sfl.direction.1"
_RUN_PERSON = b"sfl.run-key.1"


@dataclass(frozen=True, order=True)
class Key:
    """Names one direction within a run.

    Attributes
    ----------
    round
        Round of the journal entry.
    step
        Mini-batch within the exchange (or local step).
    stream
        0 for directions shared by the round's clients; client ``c``'s own are stream ``c + 1``.
    probe
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


def check_law(law: str) -> int:
    """Return the wire tag of ``law``; raise `ConfigError` naming the legal laws otherwise."""
    if law not in LAWS:
        raise ConfigError(f"Unknown direction law {law!r}; use one of {', '.join(LAWS)}.")
    return LAWS.index(law)


def philox_key(run: bytes, key: Key, law: str) -> int:
    """Return the 128-bit Philox key of a direction (format: ``docs/directions.md``).

    Raises
    ------
    ConfigError
        If ``run`` is not 16 bytes or the law is unknown.
    """
    if len(run) != RUN_KEY_BYTES:
        raise ConfigError(f"run_key must be {RUN_KEY_BYTES} bytes; make one with zo.run_key(seed).")
    message = run + struct.pack(
        "<BQQQQ", check_law(law), key.round, key.step, key.stream, key.probe
    )
    return int.from_bytes(blake2b(message, digest_size=16, person=_PERSON).digest(), "little")
