"""The server's part of secure sums: it passes shares on, adds up, and takes masks off the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import WireError
from sfl_flower.privacy.secure_circle import Circle
from sfl_flower.privacy.secure_client import Dealt, opened_pairs, own_mask
from sfl_flower.privacy.secure_keys import mark, mask
from sfl_flower.privacy.secure_numbers import LARGEST_SUM
from sfl_flower.privacy.shares import from_bytes, to_bytes, values_at

__all__ = ["Left", "NotOpenedError", "SecureRound"]

T = TypeVar("T")

_TRIES = 1000
"""Choices of shares that are tried where some of them are false."""


@dataclass(frozen=True)
class Left:
    """What a client left with the server: of `Dealt` what is sent."""

    mark: bytes
    pairs: bytes
    sent: NDArray[np.uint8]

    @classmethod
    def of(cls, dealt: Dealt) -> Left:
        """Return what of this is sent."""
        return cls(dealt.mark, dealt.pairs, dealt.sent)


class NotOpenedError(WireError):
    """The sum of a round stays closed."""


@dataclass
class SecureRound:
    """One sum; clients are called by their position in the circle.

    Attributes
    ----------
    circle : Circle
        Who is whose neighbour.
    keys : sequence of bytes
        Public keys, by position.
    round : int
        The round.
    left : dict of Left
        What was dealt, by position; complete before the first numbers are asked for.
    numbers : dict of numpy.ndarray
        Masked numbers that arrived, uint64, by position; nothing is learned of a single one.
    liars : set of int
        Who revealed shares that do not fit, as far as they stood in the way: false ones, or ones
        that were dealt to them false.
    """

    circle: Circle
    keys: Sequence[bytes]
    round: int
    left: dict[int, Left] = field(default_factory=dict)
    numbers: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    liars: set[int] = field(default_factory=set)

    def neighbours(self, position: int) -> list[bytes]:
        """Return the public keys of a client's neighbours."""
        return [self.keys[other] for other in self.circle.beside(position)]

    def dealt(self, position: int) -> list[bool]:
        """Tell which of a client's neighbours dealt."""
        return [other in self.left for other in self.circle.beside(position)]

    def arrived(self, position: int) -> list[bool]:
        """Tell of which of a client's neighbours numbers arrived."""
        return [other in self.numbers for other in self.circle.beside(position)]

    def incoming(self, position: int) -> NDArray[np.uint8]:
        """Return the encrypted shares for a client, those of its neighbours in their order."""
        circle, found = self.circle, []
        derives = circle.neighbours - circle.sent
        for index, dealer in enumerate(circle.beside(position)):
            at = circle.seen_from(index) - derives
            if dealer in self.left and at >= 0:
                found.append(self.left[dealer].sent[at])
        width = next(iter(self.left.values())).sent.shape[1]
        return np.stack(found) if found else np.empty((0, width), np.uint8)

    def check(self) -> None:
        """Refuse to open the sum of those whose numbers arrived.

        Raises
        ------
        NotOpenedError
            They are too few, or a secret has too few holders, or two groups have no mask between
            them.
        """
        here, circle = self.numbers.keys(), self.circle
        if len(here) < circle.fewest:
            raise NotOpenedError(
                f"scalars of {len(here)} of {circle.clients} clients arrived, and a sum is opened "
                f"of {circle.fewest} or more."
            )
        for position in self._secrets():
            holders = sum(self.arrived(position)) + (position in here)
            if holders < circle.opens:
                raise NotOpenedError(
                    f"{holders} of the {circle.neighbours + 1} holders of a client's secret are "
                    f"left, and {circle.opens} open it."
                )
        if not circle.connected(here):
            raise NotOpenedError("the clients that are left have no masks between some of them.")

    def total(self, shares: Mapping[int, NDArray[np.uint8]]) -> NDArray[np.int64]:
        """Return the sum of all numbers that arrived.

        Parameters
        ----------
        shares : mapping of int to numpy.ndarray
            What clients revealed: their own share, then one for each neighbour that dealt.

        Raises
        ------
        NotOpenedError
            Too few shares of a secret came, or too many false ones, or what is left when all
            masks are off is no sum of legal numbers.
        """
        total = np.sum(list(self.numbers.values()), axis=0, dtype=np.uint64)
        count = total.size
        held = self._held(shares)
        for position in self._secrets():
            if position in self.numbers:
                seed = self._open(held[position], position, self._seed)
                total -= own_mask(seed, self.round, count).reshape(total.shape)
                continue
            seeds = self._open(held[position], position, self._pairs)
            for seed, other in zip(seeds, self.circle.beside(position), strict=True):
                if other in self.numbers:
                    common = mask(seed, count).reshape(total.shape)
                    adds = self.keys[other] < self.keys[position]
                    total = total - common if adds else total + common
        found: NDArray[np.int64] = np.asarray(total).view(np.int64)
        if np.abs(found).max(initial=0) > LARGEST_SUM or (found == np.iinfo(np.int64).min).any():
            raise NotOpenedError("what is left under the masks is no sum of legal scalars.")
        return found

    def _secrets(self) -> list[int]:
        """Return whose secrets have to be opened."""
        return [p for p in self.left if p in self.numbers or any(self.arrived(p))]

    def _held(self, shares: Mapping[int, NDArray[np.uint8]]) -> dict[int, dict[int, int]]:
        """Return the shares of each secret by their places."""
        held: dict[int, dict[int, int]] = {position: {} for position in self.left}
        for position, own in shares.items():
            rows = iter(own)
            held[position][1] = from_bytes(next(rows).tobytes())
            for index, dealer in enumerate(self.circle.beside(position)):
                if dealer in self.left and (share := next(rows)).any():  # zeros: it did not open
                    place = self.circle.place(self.circle.seen_from(index))
                    held[dealer][place] = from_bytes(share.tobytes())
        return held

    def _seed(self, secret: bytes, position: int) -> bytes | None:
        return secret if mark(secret) == self.left[position].mark else None

    def _pairs(self, secret: bytes, position: int) -> list[bytes] | None:
        return opened_pairs(secret, self.left[position].pairs, self.round)

    def _open(
        self, held: Mapping[int, int], position: int, read: Callable[[bytes, int], T | None]
    ) -> T:
        opens = self.circle.opens
        given = {place: share for place, share in held.items() if self._holder(position, place)}
        for chosen in islice(_choices(list(given), opens), _TRIES):
            known = {place: given[place] for place in chosen}
            found = read(to_bytes(values_at(known, (0,))[0]), position)
            if found is None:
                continue
            if chosen != tuple(given)[:opens]:
                right = zip(given.items(), values_at(known, tuple(given)), strict=True)
                wrong = {place for (place, share), value in right if share != value}
                self.liars |= {self._at(position, place) for place in wrong}
            return found
        if len(given) < opens:
            raise NotOpenedError(
                f"{len(given)} shares of a client's secret came that fit, and {opens} open it."
            )
        raise NotOpenedError("the shares of a client's secret do not fit one another.")

    def _at(self, position: int, place: int) -> int:
        """Return who holds the share at a place of a client's secret."""
        return position if place == 1 else self.circle.beside(position)[place - 2]

    def _holder(self, position: int, place: int) -> bool:
        return self._at(position, place) not in self.liars


def _choices(places: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """Yield ways to choose so many: the first ones, the first without one of them, without two."""
    for size in range(len(places) - count + 1):
        for out in combinations(places, size):
            yield tuple(place for place in places if place not in out)[:count]
