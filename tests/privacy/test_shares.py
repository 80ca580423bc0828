from __future__ import annotations

from itertools import combinations

import pytest

from sfl_flower.privacy.shares import PRIME, drawn, from_bytes, to_bytes, values_at


def test_shares_of_a_line_by_hand() -> None:
    """f(x) = 5 + 3 x: two values decide it, and any two give f(0) = 5."""
    assert values_at({0: 5, 1: 8}, (2, 3, 10)) == [11, 14, 35]
    for pair in combinations({1: 8, 2: 11, 3: 14}.items(), 2):
        assert values_at(dict(pair), (0,)) == [5]


def test_it_is_a_field_not_the_integers() -> None:
    """f(1) = 0 and f(2) = 1 is f(x) = x - 1, which is PRIME - 1 at 0; halves are whole, too."""
    assert values_at({1: 0, 2: 1}, (0,)) == [PRIME - 1]
    assert values_at({1: 0, 3: 1}, (2,))[0] * 2 % PRIME == 1


@pytest.mark.parametrize(("threshold", "holders"), [(2, 3), (5, 8), (6, 9)])
def test_any_so_many_shares_open_a_secret_and_no_fewer(threshold: int, holders: int) -> None:
    secret = drawn()
    known = {0: secret} | {place: drawn() for place in range(1, threshold)}
    places = tuple(range(1, holders + 1))
    shares = dict(zip(places, values_at(known, places), strict=True))
    assert {place: shares[place] for place in range(1, threshold)} == {
        place: value for place, value in known.items() if place
    }
    for chosen in combinations(places, threshold):
        assert values_at({place: shares[place] for place in chosen}, (0,)) == [secret]
    fewer = {place: shares[place] for place in places[: threshold - 1]}
    assert values_at(fewer, (0,)) != [secret]  # with probability 1 - 2^-127
    for other in (0, 1, PRIME - 1):  # whatever the secret, there is a polynomial through them
        through = values_at({0: other, **fewer}, places[: threshold - 1])
        assert through == list(fewer.values())


def test_shares_travel_as_sixteen_bytes() -> None:
    assert to_bytes(PRIME - 1) == b"\xfe" + b"\xff" * 14 + b"\x7f"
    assert from_bytes(to_bytes(PRIME - 1)) == PRIME - 1
    assert from_bytes(b"\xff" * 16) == (2**128 - 1) % PRIME
    assert len({drawn() for _ in range(50)}) == 50
    assert all(0 <= drawn() < PRIME for _ in range(50))
