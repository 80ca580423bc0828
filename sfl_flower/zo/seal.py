"""Seals: directions of a round that nobody can know before its seal is told.

The run key is told to every client at its first download, so whoever has it draws the directions of
all rounds to come.  With a seal, 16 bytes that the server draws for each round, the directions of
that round follow from the run key and the seal together.
"""

from __future__ import annotations

from copy import copy
from hashlib import blake2b

from sfl_flower.errors import ConfigError
from sfl_flower.zo.directions import Directions
from sfl_flower.zo.keys import RUN_KEY_BYTES

__all__ = ["sealed", "sealed_key"]

_PERSON = b"sfl.seal.1"


def sealed_key(run: bytes, seal: bytes) -> bytes:
    """Return the run key of a round with a seal, 16 bytes (format: ``docs/directions.md``).

    Parameters
    ----------
    run : bytes
        From `run_key`, 16 bytes.
    seal : bytes
        Of the round, 16 bytes.

    Raises
    ------
    ConfigError
        If either is of another length.
    """
    if len(run) != RUN_KEY_BYTES or len(seal) != RUN_KEY_BYTES:
        raise ConfigError(
            f"A run key and a seal are {RUN_KEY_BYTES} bytes each; they are {len(run)} and "
            f"{len(seal)}."
        )
    return blake2b(run + seal, digest_size=RUN_KEY_BYTES, person=_PERSON).digest()


def sealed(directions: Directions, seal: bytes) -> Directions:
    """Return the directions of a round with a seal; the same ones where it has none.

    Parameters
    ----------
    directions : Directions
        Those of the run.
    seal : bytes
        16 bytes, or none.
    """
    if not seal:
        return directions
    found = copy(directions)
    found.run_key = sealed_key(directions.run_key, seal)
    return found
