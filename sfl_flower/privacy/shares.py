"""Secrets in shares: so many of them give the secret, fewer give nothing (Shamir, 1979).

A secret is the value at 0 of a polynomial over the integers modulo the prime 2^127 - 1, a share its
value at another place.  The polynomial may be given by its values instead of its coefficients: as
many places as the threshold asks for, 0 among them, decide it.  All but that one may be any random
numbers, such as ones that dealer and holder both derive and nobody has to send.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import accumulate
from operator import mul

__all__ = [
    "PRIME",
    "SHARE_BYTES",
    "drawn",
    "from_bytes",
    "to_bytes",
    "values_at",
]

PRIME = 2**127 - 1
"""Secrets and shares are integers below it."""
SHARE_BYTES = 16
"""Bytes of a secret and of a share."""


def drawn() -> int:
    """Return a random secret, from the operating system's randomness."""
    return secrets.randbelow(PRIME)


def to_bytes(value: int) -> bytes:
    """Return a secret or a share as `SHARE_BYTES` bytes."""
    return value.to_bytes(SHARE_BYTES, "little")


def from_bytes(data: bytes) -> int:
    """Return the secret or share of `SHARE_BYTES` bytes, any of which give one below `PRIME`."""
    return int.from_bytes(data, "little") % PRIME


def values_at(known: Mapping[int, int], places: Sequence[int]) -> list[int]:
    """Return what the polynomial of lowest degree through some values is elsewhere.

    Parameters
    ----------
    known : mapping of int to int
        Values by place; as many as the threshold, at least one.
    places : sequence of int
        Where its values are wanted; places lie within [0, `PRIME`).

    Returns
    -------
    list of int
        ``Σ_i y_i Π_{j≠i} (x - x_j) / (x_i - x_j)`` for each place x (Lagrange).
    """
    values, factors = list(known.values()), _factors(tuple(known), tuple(places))
    return [sum(map(mul, values, row)) % PRIME for row in factors]


@lru_cache(maxsize=64)  # whoever deals deals at the same places every time
def _factors(known: tuple[int, ...], places: tuple[int, ...]) -> list[list[int]]:
    """Return what each known value counts at each place."""
    bottoms = [_product((x - other) % PRIME for other in known if other != x) for x in known]
    inverses = [pow(bottom, -1, PRIME) for bottom in bottoms]
    rows = []
    for place in places:
        tops = [(place - x) % PRIME for x in known]
        before = [1, *accumulate(tops[:-1], _times)]
        after = [1, *accumulate(tops[:0:-1], _times)][::-1]
        rows.append(
            [_times(_times(a, b), c) for a, b, c in zip(before, after, inverses, strict=True)]
        )
    return rows


def _times(a: int, b: int) -> int:
    return a * b % PRIME


def _product(factors: Iterable[int]) -> int:
    return reduce(_times, factors, 1)
