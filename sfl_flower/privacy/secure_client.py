"""A client's part of secure sums: it deals shares, masks its numbers, and reveals shares of others.

The protocol is that of Bonawitz et al. (2017) on the graph of Bell et al. (2020).  Each pair of
neighbours has a mask in common, which one adds to its numbers and the other subtracts.  In each
round a client draws a seed b, whose mask it adds too, and a key ρ, under which it leaves with the
server the seeds of the masks it has in common with others.  It deals shares of both to its
neighbours.  Later each of them reveals one of the two shares: that of b where the client's numbers
arrived, that of ρ where they did not.  Never both, or the numbers would lie open.

Keys are agreed once a run: what opens a client that dropped out is ρ, which is of one round, where
Bonawitz et al. share the private key itself and so need a new one each round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import WireError
from sfl_flower.privacy.secure_circle import DEALT_BYTES, Circle
from sfl_flower.privacy.secure_keys import (
    agreed,
    decrypted,
    derived,
    encrypted,
    mark,
    mask,
    public_key,
)
from sfl_flower.privacy.shares import SHARE_BYTES, drawn, from_bytes, to_bytes, values_at

__all__ = [
    "Dealt",
    "Partner",
    "masked",
    "opened_pairs",
    "own_mask",
    "revealed",
]

_OWN, _PAIRS, _SHARE, _SEALED = "own mask", "pairs", "share", "dealt"


@dataclass(frozen=True)
class Partner:
    """A neighbour as a client sees it in a run.

    Attributes
    ----------
    key : bytes
        Its public key.
    secret : bytes
        What the two agree on, 32 bytes.
    adds : bool
        Whether the client adds their common mask; else it subtracts it, as the neighbour adds it.
    """

    key: bytes
    secret: bytes
    adds: bool

    @classmethod
    def of(cls, private: bytes, keys: Sequence[bytes]) -> list[Partner]:
        """Return the neighbours with these public keys of the client with this private one.

        Raises
        ------
        WireError
            A key is none, or the client's own, or comes twice.
        """
        own = public_key(private)
        if len({own, *keys}) <= len(keys):
            raise WireError("Two clients of a round have one public key; masks would cancel.")
        return [cls(key, agreed(private, key), own < key) for key in keys]


@dataclass(frozen=True)
class Dealt:
    """What a client draws in a round, and what of it it sends.

    Attributes
    ----------
    seed : bytes
        b; it stays with the client until its numbers are masked.
    own : bytes
        The client's own share of b, which it keeps.
    mark : bytes
        By which the server knows b when it is opened.
    pairs : bytes
        The seeds of the masks with each neighbour, encrypted under ρ.
    sent : NDArray[np.uint8]
        Encrypted shares for the neighbours that cannot derive theirs, shape [n, DEALT_BYTES].
    """

    seed: bytes
    own: bytes
    mark: bytes
    pairs: bytes
    sent: NDArray[np.uint8]

    @classmethod
    def deal(cls, key: bytes, partners: Sequence[Partner], opens: int, round: int) -> Dealt:
        """Draw b and ρ and share them among the client and its neighbours.

        Parameters
        ----------
        key : bytes
            The client's own public key.
        partners : sequence of Partner
            Its neighbours.
        opens : int
            How many shares give a secret.
        round : int
            The round.
        """
        circle = Circle(len(partners) + 1, 0, opens)
        derives = len(partners) - circle.sent
        given = [_derived_share(partner, key, round) for partner in partners[:derives]]
        places = [circle.place(index) for index in range(len(partners))]
        secrets, owns, columns = [], [], []
        for part in range(2):
            secret, own = drawn(), drawn()
            known = {0: secret, 1: own} | {
                place: share[part] for place, share in zip(places, given, strict=False)
            }
            secrets.append(to_bytes(secret))
            owns.append(to_bytes(own))
            columns.append([to_bytes(value) for value in values_at(known, places[derives:])])
        sealed = [
            encrypted(derived(partner.secret, _SEALED, round, key), seed + rho)
            for partner, seed, rho in zip(partners[derives:], *columns, strict=True)
        ]
        pairs = b"".join(_pair_seed(partner.secret, round) for partner in partners)
        return cls(
            seed=secrets[0],
            own=owns[0],
            mark=mark(secrets[0]),
            pairs=encrypted(derived(secrets[1], _PAIRS, round), pairs),
            sent=np.frombuffer(b"".join(sealed), np.uint8).reshape(-1, DEALT_BYTES),
        )


def masked(
    numbers: NDArray[np.int64],
    seed: bytes,
    partners: Sequence[Partner],
    dealt: Sequence[bool],
    round: int,
) -> NDArray[np.uint64]:
    """Return a client's numbers with every mask on them.

    Parameters
    ----------
    numbers : numpy.ndarray
        int64, any shape.
    seed : bytes
        b.
    partners : sequence of Partner
        The client's neighbours.
    dealt : sequence of bool
        Which of them dealt shares in this round; masks are shared with them alone.
    round : int
        The round.

    Returns
    -------
    numpy.ndarray
        uint64, modulo 2^64, of the same shape.
    """
    total = np.ascontiguousarray(numbers).reshape(-1).view(np.uint64) + own_mask(
        seed, round, numbers.size
    )
    for partner, takes_part in zip(partners, dealt, strict=True):
        if takes_part:
            common = mask(_pair_seed(partner.secret, round), numbers.size)
            total = total + common if partner.adds else total - common
    return total.reshape(numbers.shape)


def revealed(
    own: bytes,
    key: bytes,
    partners: Sequence[Partner],
    opens: int,
    dealt: Sequence[bool],
    incoming: NDArray[np.uint8],
    arrived: Sequence[bool],
    round: int,
) -> NDArray[np.uint8]:
    """Return a client's share of its own b, then for each neighbour that dealt that of b or of ρ.

    Parameters
    ----------
    own, key : bytes
        Its own share of b, and its public key.
    partners : sequence of Partner
        Its neighbours.
    opens : int
        How many shares give a secret.
    dealt : sequence of bool
        Which of them dealt shares in this round.
    incoming : numpy.ndarray
        Their encrypted shares for this client, where it cannot derive them, uint8 [n, DEALT_BYTES].
    arrived : sequence of bool
        Of which of them the server says that their numbers arrived.
    round : int
        The round.

    Returns
    -------
    numpy.ndarray
        uint8, shape [1 + dealers, SHARE_BYTES]; zeros where a share was not sealed for this client.

    Raises
    ------
    WireError
        Too few numbers arrived, or of somebody who dealt nothing, or a share is missing: nothing
        is revealed.
    """
    circle = Circle(len(partners) + 1, 0, opens)
    if 1 + sum(arrived) < opens or any(
        here and not dealer for here, dealer in zip(arrived, dealt, strict=True)
    ):
        raise WireError(
            f"Numbers of {1 + sum(arrived)} of {len(partners) + 1} holders are said to have "
            f"arrived, and {opens} open a secret; nothing is revealed."
        )
    derives, sealed, found = len(partners) - circle.sent, iter(incoming), [own]
    for index, partner in enumerate(partners):
        if not dealt[index]:
            continue
        if circle.seen_from(index) < derives:
            shares = [to_bytes(value) for value in _derived_share(partner, partner.key, round)]
        else:
            box = next(sealed, None)
            if box is None:
                raise WireError("A neighbour's share did not come along; nothing is revealed.")
            plain = decrypted(derived(partner.secret, _SEALED, round, partner.key), box.tobytes())
            plain = plain or bytes(2 * SHARE_BYTES)
            shares = [plain[:SHARE_BYTES], plain[SHARE_BYTES:]]
        found.append(shares[0 if arrived[index] else 1])
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, SHARE_BYTES)


def own_mask(seed: bytes, round: int, count: int) -> NDArray[np.uint64]:
    """Return the mask of b."""
    return mask(derived(seed, _OWN, round), count)


def opened_pairs(rho: bytes, pairs: bytes, round: int) -> list[bytes] | None:
    """Return the seeds that a client left under ρ, None where this is another ρ."""
    plain = decrypted(derived(rho, _PAIRS, round), pairs)
    if plain is None:
        return None
    return [plain[at : at + SHARE_BYTES] for at in range(0, len(plain), SHARE_BYTES)]


def _pair_seed(secret: bytes, round: int) -> bytes:
    return derived(secret, "pair mask", round, length=SHARE_BYTES)


def _derived_share(partner: Partner, dealer: bytes, round: int) -> tuple[int, int]:
    """Return the shares of b and ρ that the dealer's neighbour has without being sent them."""
    both = derived(partner.secret, _SHARE, round, dealer, 2 * SHARE_BYTES)
    return from_bytes(both[:SHARE_BYTES]), from_bytes(both[SHARE_BYTES:])
