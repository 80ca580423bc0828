"""The protocol of secure sums without messages: who drops out when, who lies, who learns what."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest

from sfl_flower.errors import WireError
from sfl_flower.privacy.secure_circle import Circle
from sfl_flower.privacy.secure_client import Dealt, Partner, masked, revealed
from sfl_flower.privacy.secure_keys import new_key, public_key
from sfl_flower.privacy.secure_server import Left, NotOpenedError, SecureRound

ROUND = 7


@dataclass
class Cast:
    """All clients of a round, and the server."""

    server: SecureRound
    numbers: np.ndarray
    partners: list[list[Partner]]
    dealt: dict[int, Dealt] = field(default_factory=dict)
    incoming: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, clients: int, width: int = 0, threshold: float = 0.6, seed: int = 0) -> Cast:
        private = [new_key() for _ in range(clients)]
        keys = [public_key(key) for key in private]
        server = SecureRound(Circle(clients, width, threshold), keys, ROUND)
        numbers = np.random.default_rng(seed).integers(-(2**40), 2**40, (clients, 2, 3))
        return cls(
            server,
            numbers,
            [Partner.of(private[at], server.neighbours(at)) for at in range(clients)],
        )

    def deal(self, without: Collection[int] = ()) -> Cast:
        for at, partners in enumerate(self.partners):
            if at not in without:
                opens = self.server.circle.opens
                self.dealt[at] = Dealt.deal(self.server.keys[at], partners, opens, ROUND)
                self.server.left[at] = Left.of(self.dealt[at])
        return self

    def mask(self, without: Collection[int] = ()) -> Cast:
        for at in self.server.left:
            self.incoming[at] = self.server.incoming(at)
            if at not in without:
                self.server.numbers[at] = self.masked(at)
        return self

    def masked(self, at: int) -> np.ndarray:
        seed, dealers = self.dealt[at].seed, self.server.dealt(at)
        return masked(self.numbers[at], seed, self.partners[at], dealers, ROUND)

    def reveal(self, at: int, arrived: list[bool] | None = None) -> np.ndarray:
        return revealed(
            self.dealt[at].own,
            self.server.keys[at],
            self.partners[at],
            self.server.circle.opens,
            self.server.dealt(at),
            self.incoming[at],
            self.server.arrived(at) if arrived is None else arrived,
            ROUND,
        )

    def shares(self, without: Collection[int] = ()) -> dict[int, np.ndarray]:
        return {at: self.reveal(at) for at in self.server.numbers if at not in without}

    def plain(self) -> np.ndarray:
        total: np.ndarray = self.numbers[list(self.server.numbers)].sum(axis=0)
        return total


def drops(clients: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield how many drop out before they deal, before they mask, and before they reveal."""
    for before, between, after in product(range(most + 1), repeat=3):
        if before + between + after <= most:
            yield before, between, after


@pytest.mark.parametrize(("clients", "threshold"), [(5, 0.6), (4, 3), (6, 4), (9, 0.51)])
def test_sums_are_exact_with_up_to_k_less_t_dropping_out_at_each_stage(
    clients: int, threshold: float
) -> None:
    """K is all others; by one order of clients and by another."""
    most = clients - Circle(clients, 0, threshold).opens
    rng = np.random.default_rng(1)
    for before, between, after in drops(clients, most):
        order = rng.permutation(clients).tolist()
        first, second = before, before + between
        gone = (order[:first], order[first:second], order[second : second + after])
        cast = Cast.of(clients, 0, threshold).deal(gone[0]).mask(gone[1])
        cast.server.check()
        total = cast.server.total(cast.shares(gone[2]))
        assert np.array_equal(total, cast.plain()), (before, between, after)
        assert len(cast.server.numbers) == clients - before - between


@pytest.mark.parametrize("stage", ["deal", "mask", "reveal"])
def test_with_few_neighbours_any_who_leave_enough_of_them_may_drop_out(stage: str) -> None:
    """Of 9 holders of each secret 6 open it: any 3 may go, neighbours of one another too."""
    for gone in ((0, 1, 2), (3, 9, 15), (17, 18, 19)):
        cast = Cast.of(20, 8, 0.6).deal(gone if stage == "deal" else ())
        cast.mask(gone if stage == "mask" else ())
        cast.server.check()
        total = cast.server.total(cast.shares(gone if stage == "reveal" else ()))
        assert np.array_equal(total, cast.plain())


@pytest.mark.parametrize("clients", [4, 5])
def test_below_the_threshold_nothing_is_opened(clients: int) -> None:
    opens = Circle(clients, 0, 0.6).opens
    cast = Cast.of(clients).deal().mask(range(clients - opens + 1))
    with pytest.raises(NotOpenedError, match=f"scalars of {opens - 1} of {clients} clients"):
        cast.server.check()
    with pytest.raises(WireError, match="nothing is revealed"):  # nor would a client help
        cast.reveal(clients - 1)
    cast = Cast.of(clients).deal().mask()
    cast.server.check()
    with pytest.raises(NotOpenedError, match=f"{opens - 1} shares .* came that fit, and {opens}"):
        cast.server.total(cast.shares(range(clients - opens + 1)))


def test_a_sum_in_two_parts_is_not_opened() -> None:
    """Of two neighbours each, 0 1 2 and 4 5 6 have no mask in common once 3 and 7 are gone."""
    cast = Cast.of(8, 2, 2).deal().mask((3, 7))
    with pytest.raises(NotOpenedError, match="no masks between some of them"):
        cast.server.check()


def test_too_few_holders_of_one_secret_are_noticed_before_anybody_is_asked() -> None:
    cast = Cast.of(12, 4, 0.8).deal().mask((1, 2))
    with pytest.raises(NotOpenedError, match="3 of the 5 holders of a client's secret are left"):
        cast.server.check()


def test_masked_numbers_tell_nothing() -> None:
    """Zeros under masks have bits of a fair coin; a mask missing, the sum is nobody's."""
    cast = Cast.of(5)
    cast.numbers = np.zeros((5, 64, 64), np.int64)
    cast.deal().mask()
    for numbers in cast.server.numbers.values():
        ones = np.unpackbits(numbers.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / numbers.nbytes**0.5 / 8**0.5
    seeds = {dealt.seed for dealt in (*cast.dealt.values(), *Cast.of(5).deal().dealt.values())}
    assert len(seeds) == 10
    bare = np.sum(list(cast.server.numbers.values()), axis=0, dtype=np.uint64)
    assert bare.any()  # the seeds' masks are still on
    assert not cast.server.total(cast.shares()).any()


def test_a_late_answer_stays_closed_although_its_pairs_are_open() -> None:
    """Client 2 counts as gone; its neighbours' shares open ρ and with it every common mask."""
    cast = Cast.of(4).deal().mask((2,))
    shares = cast.shares()
    assert np.array_equal(cast.server.total(shares), cast.plain())
    late = cast.masked(2)
    alone = replace(cast.server, numbers={2: late}, liars=set())
    with pytest.raises(NotOpenedError):  # of b no share was revealed
        alone.total(shares)


def test_one_share_of_each_secret_is_revealed_and_of_the_right_one() -> None:
    cast = Cast.of(3).deal().mask((1,))
    found = cast.reveal(0)
    one, two = cast.server.circle.beside(0)
    assert (one, two) == (1, 2)
    assert len(found) == 3
    assert found[0].tobytes() == cast.dealt[0].own
    with_all = cast.reveal(0, [True, True])
    assert np.array_equal(with_all[[0, 2]], found[[0, 2]])
    assert not np.array_equal(with_all[1], found[1])  # the share of b instead of that of ρ


def test_numbers_of_somebody_who_dealt_nothing_cannot_have_arrived() -> None:
    cast = Cast.of(4).deal((1,)).mask()
    with pytest.raises(WireError, match="nothing is revealed"):
        cast.reveal(0, [True, True, True])


@pytest.mark.parametrize("liar", [0, 4, 8])
def test_who_reveals_false_shares_is_found_and_the_sum_is_exact(liar: int) -> None:
    cast = Cast.of(9).deal().mask((2,))
    shares = cast.shares()
    shares[liar] = np.ones_like(shares[liar])
    assert np.array_equal(cast.server.total(shares), cast.plain())
    assert cast.server.liars <= {liar}
    if liar == 0:  # among the first that are tried
        assert cast.server.liars == {liar}


def test_a_share_that_does_not_open_is_nobodys_lie() -> None:
    """Client 1 is dealt noise for its share; it says so by zeros, and the others open the sum."""
    cast = Cast.of(9).deal().mask((2,))
    shares = cast.shares()
    shares[0] = np.concatenate([shares[0][:1], np.zeros_like(shares[0][:1]), shares[0][2:]])
    assert np.array_equal(cast.server.total(shares), cast.plain())
    assert cast.server.liars == set()


def test_a_sum_of_two_is_never_opened() -> None:
    """Each of the two would know the other's part."""
    cast = Cast.of(3).deal().mask((1,))
    with pytest.raises(NotOpenedError, match=r"scalars of 2 of 3 clients .* of 3 or more"):
        cast.server.check()


def test_more_liars_than_the_threshold_leaves_room_for_keep_the_sum_closed() -> None:
    cast = Cast.of(5).deal().mask()  # 3 of 5 open
    shares = cast.shares()
    for liar in (0, 1, 2):
        shares[liar] = np.full_like(shares[liar], liar + 1)
    with pytest.raises(NotOpenedError, match="do not fit one another"):
        cast.server.total(shares)


def test_who_deals_false_shares_keeps_the_sum_closed_and_gives_no_wrong_one() -> None:
    cast = Cast.of(5).deal()
    other = Cast.of(5).deal()
    cast.server.left[1] = Left.of(other.dealt[1])
    cast.mask()
    with pytest.raises(NotOpenedError):
        cast.server.total(cast.shares())


def test_who_masks_with_other_seeds_than_it_left_is_noticed_by_the_size_of_the_sum() -> None:
    cast = Cast.of(5).deal().mask()
    cast.server.numbers[3] = cast.server.numbers[3] + np.uint64(2**60)
    with pytest.raises(NotOpenedError, match="no sum of legal scalars"):
        cast.server.total(cast.shares())


def test_shares_that_can_be_derived_are_not_sent() -> None:
    """Of 9 holders 6 open: the own share and 4 neighbours' are free, the other 4 are sent."""
    cast = Cast.of(20, 8, 0.6).deal()
    assert {dealt.sent.shape for dealt in cast.dealt.values()} == {(4, 48)}
    cast.mask()
    assert {incoming.shape for incoming in cast.incoming.values()} == {(4, 48)}


def test_two_clients_with_one_key_are_refused() -> None:
    one, two = new_key(), new_key()
    with pytest.raises(WireError, match="one public key"):
        Partner.of(one, [public_key(two), public_key(one)])
    with pytest.raises(WireError, match="one public key"):
        Partner.of(one, [public_key(two), public_key(two)])
