"""The walks of a round's clients from one start, as their scalars; and the mean where they end.

A client that takes its local steps on its own has walked: where it came to follows from the start,
its key and its scalars (`Walk`).  Whoever knows those of every client of a round follows all of
them and has the mean to the same bits as the server.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import JournalError, WireError
from sfl_flower.zo.coefficients import StepRule
from sfl_flower.zo.directions import Directions
from sfl_flower.zo.entry import MAX_COEFFICIENTS, MAX_LR
from sfl_flower.zo.guide import Guide, guide_bytes
from sfl_flower.zo.keys import RUN_KEY_BYTES, step_keys
from sfl_flower.zo.law import Shapes
from sfl_flower.zo.optimizers import OptimizerSpec
from sfl_flower.zo.walk import Walk

__all__ = ["LocalWalk", "RoundOfWalks", "Walking"]

_HEAD = struct.Struct("<4sBBHIIId")
_MAGIC, _FORMAT, _HAS_GUIDE = b"SFLw", 1, 1
_WALK = struct.Struct(f"<{RUN_KEY_BYTES}sIdI")
_MOST_STEPS = 10**6


@dataclass(frozen=True, eq=False)
class LocalWalk:
    """The local steps of one client in one round.

    Attributes
    ----------
    key : bytes
        Key of the client's directions, 16 bytes; nothing else that it draws follows from it.
    stream : int
        Its stream, `client_stream`.
    share : float
        What it counts in the mean, above 0; only ratios matter.
    scalars : numpy.ndarray
        v of the steps that were taken, float32, shape [t, n].
    taken : numpy.ndarray
        1 for each step that was taken and 0 for one that was skipped, uint8, shape [h].
    """

    key: bytes
    stream: int
    share: float
    scalars: NDArray[np.float32]
    taken: NDArray[np.uint8]


@dataclass(frozen=True)
class Walking:
    """How walks of a run go.

    Attributes
    ----------
    law : str
        Of the directions.
    shapes : tuple of tuple of int
        Of the tensors that walk, in the order of the flat vector.
    spec : OptimizerSpec
        The optimiser, whose state begins anew each round.
    rule : StepRule
        Makes a step of scalars.
    probes : int
        P, directions of a step.
    """

    law: str
    shapes: Shapes
    spec: OptimizerSpec
    rule: StepRule
    probes: int

    def end(
        self, start: Tensor, walk: LocalWalk, round: int, lr: float, guide: Guide | None = None
    ) -> Tensor:
        """Return where a walk leads, the client's own bits.

        Parameters
        ----------
        start : Tensor
            Flat float32 parameters on the CPU; not changed.
        walk : LocalWalk
            The client's.
        round : int
            The round.
        lr : float
            The learning rate of its steps.
        guide : Guide, optional
            One more direction of every step, the last; scalars are [t, P + 1] then.

        Raises
        ------
        JournalError
            If scalars are not of that many directions, a scalar is beyond what a guide can be
            multiplied by, or parameters are not finite.
        """
        wanted = self.probes + (guide is not None)
        if walk.scalars.shape != (int(np.count_nonzero(walk.taken)), wanted):
            raise JournalError(
                f"scalars of shape {walk.scalars.shape} are not those of "
                f"{int(np.count_nonzero(walk.taken))} steps along {wanted} directions."
            )
        flat = start.clone()
        directions = Directions(walk.key, self.law, self.shapes)
        path = Walk(flat, self.spec, directions)
        for scalars, step in zip(walk.scalars, np.flatnonzero(walk.taken).tolist(), strict=True):
            keys = step_keys(round, step, walk.stream, self.probes)
            factors, term = self.rule.terms(scalars, keys, directions, guide)
            path.step(keys, factors, lr, term)
        if not torch.isfinite(flat).all():
            raise JournalError(
                "its scalars lead to parameters that are not finite; lower client-lr or "
                "scalar-limit if this repeats."
            )
        return flat

    def mean(self, start: Tensor, walks: RoundOfWalks) -> Tensor:
        """Return the mean of the ends of all walks of a round, in their order.

        The sums are those of the server's weighted mean of states, to the bit: in float64, a
        client's share over the sum of shares times its parameters, one client after another.

        Parameters
        ----------
        start : Tensor
            Flat float32 parameters on the CPU; not changed.
        walks : RoundOfWalks
            The walks.

        Raises
        ------
        JournalError
            As `end`.
        """
        if walks.guide is not None and not walks.guide.fits(self.shapes):
            raise JournalError("the guide of the walks is a direction over other parameters.")
        total = sum(walk.share for walk in walks.walks)
        found: Tensor | None = None
        for walk in walks.walks:
            end = self.end(start, walk, walks.round, walks.lr, walks.guide)
            part = end.to(torch.float64).mul_(walk.share / total)
            found = part if found is None else found.add_(part)
        return start.clone() if found is None else found.to(torch.float32)


@dataclass(frozen=True, eq=False)
class RoundOfWalks:
    """The walks of a round whose mean is what everybody starts from next.

    Attributes
    ----------
    round : int
        The round.
    lr : float
        The learning rate of its steps.
    walks : tuple of LocalWalk
        Of the clients whose replies were used, in the order of the mean; at least one.
    guide : Guide, optional
        The guide of the round.
    """

    round: int
    lr: float
    walks: tuple[LocalWalk, ...]
    guide: Guide | None = None

    @property
    def steps(self) -> int:
        """Steps that were taken, of all walks."""
        return sum(len(walk.scalars) for walk in self.walks)

    def encode(self) -> bytes:
        """Return the bytes, little-endian (format: ``docs/journal.md``)."""
        columns = self.walks[0].scalars.shape[1]
        flags = _HAS_GUIDE if self.guide is not None else 0
        counts = (self.round, len(self.walks), columns)
        found = [_HEAD.pack(_MAGIC, _FORMAT, flags, 0, *counts, self.lr)]
        for walk in self.walks:
            found += [
                _WALK.pack(walk.key, walk.stream, walk.share, len(walk.taken)),
                np.packbits(walk.taken, bitorder="little").tobytes(),
                walk.scalars.astype("<f4", copy=False).tobytes(),
            ]
        return b"".join([*found, self.guide.encode() if self.guide is not None else b""])

    @classmethod
    def decode(cls, data: bytes) -> RoundOfWalks:
        """Read walks that fill ``data`` exactly.

        Raises
        ------
        WireError
            If these are not the bytes of legal walks.
        """
        round_, lr, columns, guided = _head(data)
        walks = []
        for at, steps, after in _walks(data):
            key, stream, share, _ = _WALK.unpack_from(data, at)
            low = at + _WALK.size
            high = low + -(-steps // 8)
            bits = np.frombuffer(data[low:high], np.uint8)
            taken = np.unpackbits(bits, count=steps, bitorder="little")
            rows = np.frombuffer(data[high:after], "<f4").astype(np.float32).reshape(-1, columns)
            if not (0 < share < math.inf and np.isfinite(rows).all()):
                raise WireError(
                    "A received walk has a scalar that is not finite, or counts nothing in the "
                    "mean."
                )
            walks.append(LocalWalk(key, stream, share, rows, taken))
        end = _end(data)
        return cls(round_, lr, tuple(walks), Guide.decode(data[end:]) if guided else None)

    @staticmethod
    def bytes_of(data: bytes) -> dict[str, int]:
        """Return how many of the bytes are scalars, and how many name directions.

        Raises
        ------
        WireError
            If these are not the bytes of walks.
        """
        _, _, _, guided = _head(data)
        scalars, keys, count = 0, 0, 0
        for at, steps, after in _walks(data):
            scalars += after - at - _WALK.size - -(-steps // 8)
            count += 1
        keys = count * (RUN_KEY_BYTES + 4) + (len(data) - _end(data) if guided else 0)
        return {"scalars": scalars, "keys": keys}


def _head(data: bytes) -> tuple[int, float, int, bool]:
    """Return round, rate, scalars of a step and whether there is a guide."""
    if len(data) < _HEAD.size:
        raise WireError("Walks are cut short before the end of their head.")
    magic, form, flags, zero, round_, walks, columns, lr = _HEAD.unpack_from(data)
    if (magic, form, zero) != (_MAGIC, _FORMAT, 0) or flags > _HAS_GUIDE:
        raise WireError("These bytes are not walks of format 1.")
    if not (walks and 1 <= columns <= MAX_COEFFICIENTS and 0.0 <= lr <= MAX_LR):
        raise WireError(
            f"Walks declare {walks} clients, {columns} scalars a step and a rate of {lr}; legal "
            f"are at least 1, 1..{MAX_COEFFICIENTS} and 0..{MAX_LR:g}."
        )
    end = _end(data)
    guide = guide_bytes(data, end) if flags & _HAS_GUIDE else 0
    if len(data) != end + guide:
        raise WireError(f"Walks have {len(data) - end - guide} bytes too many.")
    return round_, lr, columns, bool(flags & _HAS_GUIDE)


def _walks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where each walk begins, its steps, and where it ends."""
    _, _, _, _, _, walks, columns, _ = _HEAD.unpack_from(data)
    at = _HEAD.size
    for _ in range(walks):
        if len(data) - at < _WALK.size:
            raise WireError("A received walk is cut short before its scalars.")
        _, _, _, steps = _WALK.unpack_from(data, at)
        low = at + _WALK.size
        high = low + -(-steps // 8)
        if not 1 <= steps <= _MOST_STEPS or high > len(data):
            raise WireError(f"A received walk declares {steps} steps; legal: 1..{_MOST_STEPS}.")
        bits = np.frombuffer(data[low:high], np.uint8)
        taken = int(np.unpackbits(bits, count=steps, bitorder="little").sum())
        after = high + 4 * taken * columns
        if after > len(data):
            raise WireError(f"A received walk is cut short by {after - len(data)} bytes.")
        yield at, steps, after
        at = after


def _end(data: bytes) -> int:
    """Return where the last walk ends."""
    *_, (_, _, after) = _walks(data)
    return after
