"""Who takes part: a bad node stops a run before it begins, and no run that has begun."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from sfl_flower.errors import DataError
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.inline import InlineGrid
from sfl_flower.server.roster import Member, Roster
from tests import tiny

pytestmark = pytest.mark.flower

Answers = dict[int, tuple[int, int, str]]


def _ask(answers: Answers, nodes: Iterable[Member]) -> dict[Member, tuple[int, int, str]]:
    return {node: answers[node.node_id] for node in nodes}


def _grid(nodes: int) -> InlineGrid:
    return InlineGrid(make_client_app(lambda context: tiny.task()), nodes)


def test_a_bad_node_stops_a_run_before_it_begins() -> None:
    roster = Roster(2, seed=0, deadline=0.01)
    answers = {1000: (0, 5, ""), 1001: (1, 0, "Client 1 holds no samples.")}
    with pytest.raises(DataError, match="Client 1 holds no samples"):
        roster.refresh(_grid(2), lambda nodes: _ask(answers, nodes))


@pytest.mark.parametrize("late", [(7, 0, "no data"), (0, 3, "")])
def test_a_node_that_comes_late_is_left_out_or_takes_its_share_back(
    late: tuple[int, int, str],
) -> None:
    roster = Roster(2, seed=0, deadline=0.01)
    answers: Answers = {1000: (0, 5, ""), 1001: (1, 4, ""), 1002: late}
    grid = _grid(3)
    grid.nodes = [1000, 1001]
    roster.refresh(grid, lambda nodes: _ask(answers, nodes))
    grid.nodes = [1000, 1001, 1002]
    found = roster.refresh(grid, lambda nodes: _ask(answers, nodes))
    if late[2]:
        assert found == [Member(0, 1000, 5), Member(1, 1001, 4)]
    else:
        assert found == [Member(0, 1002, 3), Member(1, 1001, 4)]
    assert roster.refresh(grid, lambda nodes: pytest.fail("asked twice")) == found


def test_of_two_late_nodes_with_one_partition_the_first_is_taken() -> None:
    roster = Roster(1, seed=0, deadline=0.01)
    answers: Answers = {1000: (0, 5, ""), 1001: (1, 4, ""), 1002: (1, 6, "")}
    grid = _grid(3)
    grid.nodes = [1000]
    roster.refresh(grid, lambda nodes: _ask(answers, nodes))
    grid.nodes = [1000, 1001, 1002]
    found = roster.refresh(grid, lambda nodes: _ask(answers, nodes))
    assert found == [Member(0, 1000, 5), Member(1, 1001, 4)]


def test_a_node_that_does_not_answer_is_asked_less_and_less_often() -> None:
    roster = Roster(2, seed=0, deadline=0.01)
    asked: list[int] = []
    now = [0]

    def ask(nodes: Iterable[Member]) -> dict[Member, tuple[int, int, str]]:
        if any(node.node_id == 1001 for node in nodes):
            asked.append(now[0])
        return {node: (0, 5, "") for node in nodes if node.node_id == 1000}

    for now[0] in range(1, 16):
        assert roster.refresh(_grid(2), ask) == [Member(0, 1000, 5)]
    assert asked == [1, 2, 4, 8]
