"""Who masks with whom: clients stand in a circle, each beside its neighbours (Bell et al. 2020).

With as many neighbours as there are others everybody masks with everybody (Bonawitz et al. 2017).
With fewer the cost of a client does not grow with the round, and fewer may drop out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sfl_flower.errors import ConfigError
from sfl_flower.privacy.shares import SHARE_BYTES

__all__ = [
    "DEALT_BYTES",
    "FEWEST",
    "KEY_BYTES",
    "MARK_BYTES",
    "TAG_BYTES",
    "Circle",
    "threshold_of",
]

KEY_BYTES = 32
"""Bytes of a key, public or private."""
TAG_BYTES = 16
"""Bytes that encryption adds."""
DEALT_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""Bytes of a share of each of a client's two secrets, encrypted."""
MARK_BYTES = 8
"""Bytes by which a secret, or a public key, is known again."""
FEWEST = 3
"""Clients in a circle, at least: of two, each knows the other's part of the sum."""
_HALF = (
    "secure_threshold={:g} lets {} of {} holders open what a client masked with; more than half "
    "are needed, or a server that tells two stories about who dropped out learns single scalars: "
    "set it above 0.5, or to a number of clients above half of them."
)


@dataclass(frozen=True)
class Circle:
    """So many clients, each with the same number of neighbours.

    Attributes
    ----------
    clients : int
        Those in the circle, called by their position in it, from 0.
    width : int
        Neighbours that are wanted, an even number; 0 for all others.
    threshold : float
        How many of the holders of a secret, its owner and its neighbours, open it: a share of them
        up to 1, or their number from 2 on.
    """

    clients: int
    width: int
    threshold: float

    @property
    def neighbours(self) -> int:
        """Neighbours of each: the same ones ahead as behind, or all others."""
        return min(self.width or self.clients - 1, self.clients - 1)

    @property
    def opens(self) -> int:
        """Shares that give a secret."""
        return threshold_of(self.threshold, self.neighbours + 1)

    @property
    def fewest(self) -> int:
        """Clients without which no sum is opened: the threshold's share of all, at least three."""
        return max(FEWEST, -(-self.clients * self.opens // (self.neighbours + 1)))

    @property
    def sent(self) -> int:
        """Shares that a client sends; its own and the first `opens - 2` neighbours' are derived."""
        return self.neighbours - (self.opens - 2)

    def beside(self, position: int) -> list[int]:
        """Return the neighbours of a position: the next, the one before, the next but one, ..."""
        steps = ((1 + i // 2) * (-1 if i % 2 else 1) for i in range(self.neighbours))
        return [(position + step) % self.clients for step in steps]

    def seen_from(self, index: int) -> int:
        """Return at which index of its neighbour's neighbours a client stands."""
        alone = index == self.neighbours - 1 and self.neighbours % 2 == 1
        return index if alone else index ^ 1

    def place(self, index: int) -> int:
        """Return the place of a neighbour's share of a secret; the owner's own is at 1."""
        return index + 2

    def connected(self, positions: Iterable[int]) -> bool:
        """Tell whether the masks among some of them tie all of them together.

        Where they do not, the sum of each part would be known apart.
        """
        left = set(positions)
        reached = [left.pop()] if left else []
        while reached:
            near = left.intersection(self.beside(reached.pop()))
            left -= near
            reached += near
        return not left


def threshold_of(threshold: float, holders: int) -> int:
    """Return how many of the holders of a secret open it.

    Parameters
    ----------
    threshold : float
        A share of the holders up to 1, or their number.
    holders : int
        A client and its neighbours.

    Raises
    ------
    ConfigError
        It is no whole number, above the holders, or not above half of them.
    """
    if threshold <= 0.5:
        raise ConfigError(_HALF.format(threshold, "at most half", holders))
    count = math.ceil(threshold * holders - 1e-9) if threshold <= 1 else int(threshold)
    if threshold > 1 and count != threshold:
        raise ConfigError(
            f"secure_threshold is {threshold:g}; it must be a share up to 1, or a whole number of "
            "clients."
        )
    if count > holders:
        raise ConfigError(
            f"secure_threshold is {count}, but a client's masks are held by {holders} clients, "
            "itself and its neighbours; lower it, or raise secure_neighbours or the cohort."
        )
    if 2 * count <= holders:
        raise ConfigError(_HALF.format(threshold, count, holders))
    return count
