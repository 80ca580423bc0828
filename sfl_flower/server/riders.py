"""Answers that cost nothing to make: constants, zeros, and copies of what others know.

A client that saves itself the work harms little and learns from all others; so does one whose
accelerator returns zeros.  Nothing here proves either, so such answers are used, and the record of
the round says whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally

__all__ = ["mark_scalars", "mark_smashed"]

FEW = 4
"""Scalars among which what follows from another's by chance is no longer believed."""
FIRST = 16
"""Values that are held against one another before all are."""
ALIKE = 1e-6
"""How far the cosine of scalars and what is told everybody may be from 1."""


def mark_scalars(
    brought: Mapping[Member, np.ndarray], tally: Tally, told: Sequence[np.ndarray] = ()
) -> None:
    """Mark clients whose scalars are all zero, all equal, or a copy.

    Parameters
    ----------
    brought : Mapping[Member, numpy.ndarray]
        Scalars of a round, of any shape.
    tally : Tally
        The round.
    told : sequence of numpy.ndarray
        What the server told everybody, of which no scalars may be a multiple.
    """
    moved = any(scalars.any() for scalars in brought.values())
    for member, scalars in brought.items():
        if scalars.size and not scalars.any():
            if moved:
                tally.mark("zero scalars", member.partition)
        elif scalars.size >= FEW:
            if (scalars == scalars.flat[0]).all():
                tally.mark("constant scalars", member.partition)
            if any(_multiple(scalars, each) for each in told):
                tally.mark("repeated scalars", member.partition)
    worth = {m: v for m, v in brought.items() if v.size >= FEW and v.any()}
    _mark_copies("copied scalars", worth, tally)


def mark_smashed(brought: Mapping[Member, np.ndarray], tally: Tally) -> None:
    """Mark clients whose smashed data are equal for all samples, or another's.

    A client of one sample has no other, and a client half that tells no sample from another does so
    on every client; of neither is anything said.

    Parameters
    ----------
    brought : Mapping[Member, numpy.ndarray]
        Smashed data of a round, shape [n, ...].
    tally : Tally
        The round.
    """
    varied = {member: z for member, z in brought.items() if _varies(z)}
    for member, z in brought.items():
        if varied and member not in varied and len(z) > 1 and member.samples > 1:
            tally.mark("constant smashed data", member.partition)
    _mark_copies("copied smashed data", varied, tally)


def _mark_copies(what: str, brought: Mapping[Member, np.ndarray], tally: Tally) -> None:
    """Mark clients that brought the same: which of them made it, nobody knows."""
    # Few begin as another does, so almost nobody's is read to its end.
    for beginning in _alike(brought, lambda value: value.flat[:FIRST].tobytes()):
        several = {member: brought[member] for member in beginning}
        for members in _alike(several, _digest):
            for member in members:
                tally.mark(what, member.partition)


def _alike(
    brought: Mapping[Member, np.ndarray], key: Callable[[np.ndarray], bytes]
) -> list[list[Member]]:
    """Return the groups of two or more that brought arrays of one shape, type and key."""
    groups: dict[tuple[object, ...], list[Member]] = {}
    for member, value in brought.items():
        groups.setdefault((value.shape, value.dtype, key(value)), []).append(member)
    return [members for members in groups.values() if len(members) > 1]


def _digest(value: np.ndarray) -> bytes:
    flat = np.ascontiguousarray(value).reshape(-1)
    return blake2b(flat.view(np.uint8).data, digest_size=16).digest()


def _varies(z: np.ndarray) -> bool:
    """Tell whether some sample has other smashed data than the first."""
    return not all(np.array_equal(z[0], row) for row in z[1:])


def _multiple(scalars: np.ndarray, told: np.ndarray) -> bool:
    """Tell whether scalars are a multiple, not 0, of as many numbers."""
    a, b = (part.reshape(-1).astype(np.float64) for part in (scalars, told))
    if a.shape != b.shape or not b.any():
        return False
    return bool(abs(a @ b) >= (1 - ALIKE) * np.linalg.norm(a) * np.linalg.norm(b))
