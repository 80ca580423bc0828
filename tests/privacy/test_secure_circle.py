from __future__ import annotations

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.privacy.secure_circle import Circle, threshold_of


def test_neighbours_by_hand() -> None:
    circle = Circle(10, 4, 0.6)
    assert circle.beside(0) == [1, 9, 2, 8]
    assert circle.beside(9) == [0, 8, 1, 7]
    assert (circle.neighbours, circle.opens, circle.sent, circle.fewest) == (4, 3, 3, 6)


@pytest.mark.parametrize("clients", [3, 4, 5, 8, 9, 20])
@pytest.mark.parametrize("width", [0, 2, 4, 8])
def test_neighbours_are_mutual_and_know_where_the_other_sees_them(clients: int, width: int) -> None:
    circle = Circle(clients, width, 0.6)
    for position in range(clients):
        beside = circle.beside(position)
        assert len({position, *beside}) == 1 + circle.neighbours
        for index, other in enumerate(beside):
            assert circle.beside(other)[circle.seen_from(index)] == position
    if width == 0 or width >= clients - 1:
        assert circle.neighbours == clients - 1


def test_a_circle_without_a_stretch_as_wide_as_half_the_neighbours_falls_apart() -> None:
    circle = Circle(10, 4, 0.6)
    assert circle.connected(range(10))
    assert circle.connected({0, 2, 4, 6, 8})  # each has a neighbour two steps on
    assert circle.connected({0, 1, 4, 5, 6, 7, 8, 9})  # 2 and 3 are gone: the other way round
    assert not circle.connected({0, 1, 4, 5, 6, 7})  # 2 and 3, 8 and 9
    assert circle.connected({3})


@pytest.mark.parametrize(
    ("threshold", "holders", "opens"),
    [(0.6, 3, 2), (0.6, 5, 3), (0.6, 9, 6), (0.51, 4, 3), (1.0, 7, 7), (4, 7, 4), (7, 7, 7)],
)
def test_thresholds(threshold: float, holders: int, opens: int) -> None:
    assert threshold_of(threshold, holders) == opens


@pytest.mark.parametrize(
    ("threshold", "holders", "says"),
    [
        (0.5, 9, "above 0.5"),
        (0.0, 9, "above 0.5"),
        (4, 8, "lets 4 of 8 holders open"),
        (10, 9, "secure_threshold is 10, but a client's masks are held by 9 clients"),
        (2.5, 3, "a whole number of clients"),
    ],
)
def test_thresholds_that_are_refused(threshold: float, holders: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        threshold_of(threshold, holders)
