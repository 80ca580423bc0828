"""The client parameters as everyone replays them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.errors import ConfigError, JournalError
from sfl_flower.zo.directions import Direction, Directions
from sfl_flower.zo.entry import DIGEST_BYTES, Entry
from sfl_flower.zo.header import JournalHeader, chain, params_digest
from sfl_flower.zo.journal import Tail
from sfl_flower.zo.walk import Walk

__all__ = ["Replica"]


class Replica:
    """Flat parameters, optimiser state, version and digest at one point of a journal.

    Two replicas that applied the same entries are equal to the bit, whatever the machine and
    however the entries were grouped.

    Parameters
    ----------
    header : JournalHeader
        Of the journal that is followed.
    walk : Walk
        Parameters and optimiser state at this version.
    version, last_round, digest : int, int, bytes
        As the attributes.

    Attributes
    ----------
    header : JournalHeader
        As given.
    version : int
        Number of entries applied since version 0.
    last_round : int
        Round of the last entry, -1 at version 0.
    digest : bytes
        Running digest of the journal at `version`, 32 bytes; empty after an interrupted
        `apply`, which only a download repairs.
    """

    def __init__(
        self, header: JournalHeader, walk: Walk, version: int, last_round: int, digest: bytes
    ) -> None:
        self.header = header
        self._walk = walk
        self.version = version
        self.last_round = last_round
        self.digest = digest

    @classmethod
    def initial(
        cls, theta: Tensor, header: JournalHeader, shapes: Sequence[tuple[int, ...]]
    ) -> Self:
        """Return the replica at version 0, with a copy of ``theta``.

        Parameters
        ----------
        theta : Tensor
            Flat float32 parameters.
        header : JournalHeader
            Of the journal.
        shapes : sequence of tuple of int
            Of the tensors that ``theta`` holds, in its order (`ParameterVector.shapes`).

        Raises
        ------
        ConfigError
            If ``theta`` is not a flat float32 vector of these shapes.
        JournalError
            If it is not the vector that the header was made for.
        """
        if theta.dtype != torch.float32 or theta.dim() != 1:
            raise ConfigError(
                f"A replica needs a flat float32 vector; it got {theta.dtype} of shape "
                f"{tuple(theta.shape)}."
            )
        copy = theta.detach().cpu().clone()
        if params_digest(copy) != header.params_digest:
            raise JournalError(
                "The initial parameters are not those of the journal's header; download them."
            )
        directions = _directions(header, shapes)
        return cls(header, Walk(copy, header.optimizer, directions), 0, -1, header.digest())

    @property
    def theta(self) -> Tensor:
        """Flat float32 parameters on the CPU; updated in place."""
        return self._walk.theta

    @property
    def slots(self) -> dict[str, Tensor]:
        """Optimiser state by name, each like ``theta``."""
        return {name: torch.from_numpy(slot) for name, slot in self._walk.slots.items()}

    @property
    def powers(self) -> tuple[float, float]:
        """``(β1**t, β2**t)`` as running float64 products."""
        return self._walk.powers

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and optimiser state."""
        return 4 * self.theta.numel() * (1 + len(self._walk.slots))

    def params_digest(self) -> bytes:
        """Return the digest of ``theta``, as a checkpoint holds it."""
        return params_digest(self.theta)

    def in_cone(self, directions: Sequence[Direction]) -> list[Direction]:
        """Return the directions as the next entry has them, see `Walk.in_cone`."""
        return self._walk.in_cone(directions)

    def clone(self) -> Self:
        """Return an independent copy."""
        walk = self._walk.clone()
        return type(self)(self.header, walk, self.version, self.last_round, self.digest)

    def apply(self, entry: Entry) -> None:
        """Apply one entry in place and extend the digest.

        Raises
        ------
        JournalError
            If the entry's round does not come after the last one, if its guide is one over other
            tensors, if it has parts of directions, if its checkpoint is not met, or if the replica
            was interrupted earlier. The replica is then unchanged.
        """
        if not self.digest:
            raise JournalError("This replica was interrupted inside an update; download afresh.")
        if entry.round <= self.last_round:
            raise JournalError(
                f"An entry of round {entry.round} cannot follow round {self.last_round}."
            )
        if entry.guide is not None and not entry.guide.fits(self._walk.shapes):
            raise JournalError(
                f"The guide of round {entry.round} is one over other tensors; download afresh."
            )
        if entry.probes % self._walk.parts:
            raise JournalError(
                f"The entry of round {entry.round} has {entry.probes} coefficients a mini-batch, "
                f"no multiple of the {self._walk.parts} of a direction; download afresh."
            )
        backup = self._walk.clone() if entry.checkpoint else None
        before, digest = self.digest, chain(self.digest, entry.encode())
        self.digest = b""
        keys = list(entry.keys(self._walk.parts))
        self._walk.step(keys, entry.coefficients, entry.lr, entry.guide, entry.seal)
        if backup is not None and self.params_digest() != entry.checkpoint:
            self._walk.restore(backup)
            self.digest = before
            raise JournalError(
                f"After round {entry.round} the parameters differ from the checkpoint; "
                "download afresh."
            )
        self.version, self.last_round, self.digest = self.version + 1, entry.round, digest

    def replay(self, entries: Iterable[Entry]) -> None:
        """Apply entries in order; what was applied before a failing one stays applied."""
        for entry in entries:
            self.apply(entry)

    def replay_tail(self, tail: Tail) -> None:
        """Apply a received tail if it continues exactly from where this replica stands.

        Raises
        ------
        JournalError
            If it starts at another version or digest (nothing is applied), or as `apply`.
        """
        if tail.since != self.version or tail.base != self.digest:
            raise JournalError(
                f"A tail from version {tail.since} does not continue this replica at version "
                f"{self.version}; download afresh."
            )
        self.replay(tail.entries)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything but the header as arrays (copies), for a message or a file."""
        arrays: dict[str, NDArray[Any]] = {"theta": self.theta.numpy().copy()}
        arrays |= {f"slot.{name}": slot.numpy().copy() for name, slot in self.slots.items()}
        arrays["powers"] = np.array(self.powers, dtype=np.float64)
        arrays["position"] = np.array([self.version, self.last_round], dtype=np.int64)
        arrays["digest"] = np.frombuffer(self.digest, dtype=np.uint8).copy()
        return arrays

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        header: JournalHeader,
        shapes: Sequence[tuple[int, ...]],
    ) -> Self:
        """Rebuild a replica from `to_arrays`; arrays are copied.

        Parameters
        ----------
        arrays : mapping of str to numpy.ndarray
            As returned by `to_arrays`.
        header : JournalHeader
            Of the journal.
        shapes : sequence of tuple of int
            Of the tensors that are expected.

        Raises
        ------
        JournalError
            If a name, dtype, shape or value is not as it must be.
        """
        directions = _directions(header, shapes)
        _check_arrays(arrays, header, directions.size)
        theta = torch.from_numpy(np.array(arrays["theta"], dtype=np.float32))
        state = {k: v for k, v in arrays.items() if k == "powers" or k.startswith("slot.")}
        version, last_round = (int(value) for value in arrays["position"])
        walk = Walk(theta, header.optimizer, directions, state)
        return cls(header, walk, version, last_round, arrays["digest"].tobytes())


def _directions(header: JournalHeader, shapes: Sequence[tuple[int, ...]]) -> Directions:
    """Return a journal's directions over tensors of these shapes.

    Raises
    ------
    JournalError
        If the header tells tensors apart that these are not.
    """
    try:
        return Directions(header.run_key, header.law, shapes, header.apart)
    except ConfigError as error:
        raise JournalError(f"The journal's header does not fit the parameters: {error}") from error


def _check_arrays(arrays: Mapping[str, NDArray[Any]], header: JournalHeader, size: int) -> None:
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "theta": ("float32", (size,)),
        "powers": ("float64", (2,)),
        "position": ("int64", (2,)),
        "digest": ("uint8", (DIGEST_BYTES,)),
    }
    expected |= {f"slot.{name}": ("float32", (size,)) for name in header.optimizer.slots}
    if set(arrays) != set(expected):
        raise JournalError(f"A replica needs arrays {sorted(expected)}; it got {sorted(arrays)}.")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise JournalError(
                f"Replica array {name} is {array.dtype} {array.shape}; expected {dtype} {shape}."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise JournalError(f"Replica array {name} holds a value that is not finite.")
    version, last_round = (int(value) for value in arrays["position"])
    if version < 0 or not -1 <= last_round < 1 << 32 or (version == 0) != (last_round == -1):
        raise JournalError(f"Replica position {version}, {last_round} is not legal.")
    if not ((arrays["powers"] >= 0).all() and (arrays["powers"] <= 1).all()):
        raise JournalError("Replica powers must lie in 0..1.")
