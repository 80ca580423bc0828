"""Cohorts in waves: at most so many requests without a reply, and otherwise nothing changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message

from sfl_flower.methods import METHODS
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.flight import Flight, Sent
from sfl_flower.server.roster import Member
from sfl_flower.wire import JoinReply, JoinRequest, Ledger
from sfl_flower.wire.flower import SUPERLINK, identity
from tests import tiny
from tests.local_grid import Fault, LocalGrid
from tests.tiny import Trial, begin, equal, start

pytestmark = pytest.mark.flower

OPTIONS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"minibatches": 2},
    "heron": {"local_steps": 2, "upload_every": 2},
    "splitfed_v1": {"local_steps": 2},
    "splitfed_v2": {"local_steps": 2},
    "fsl_sage": {"local_steps": 2, "upload_every": 2, "align_every": 2},
    "zo_sfl": {"local_steps": 2, "probes": 2},
    "decomfl": {"local_steps": 2, "probes": 2},
}


class SlowGrid(LocalGrid):
    """Gives out one reply a look, any of those that are there, and counts requests on their way."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.flying: set[str] = set()
        self.most = 0
        self.refused: set[int] = set()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Refuse what goes to some nodes, as a network grid does that finds a request too large."""
        taken = [m for m in messages if m.metadata.dst_node_id not in self.refused]
        ids = super().push_messages(taken)
        self.flying.update(ids)
        self.most = max(self.most, len(self.flying))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = [i for i in message_ids if i in self._replies]
        chosen = self._rng.sample(there, min(1, len(there)))
        self.flying.difference_update(chosen)
        return super().pull_messages(chosen)


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every trial of this module have such a grid."""
    monkeypatch.setattr(tiny, "LocalGrid", SlowGrid)


def trained(method: str, wave: int, *faults: Fault, **more: Any) -> Trial:
    options = {"rounds": 2, **OPTIONS.get(method, {}), **more}
    return start(begin(tiny.task(), method, faults, wave=wave, **options))


def most(trial: Trial) -> int:
    """Return the most requests without a reply that there were at one time."""
    assert isinstance(trial.grid, SlowGrid)
    return trial.grid.most


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_same_in_waves(method: str) -> None:
    whole = trained(method, 0)
    assert most(whole) == 4  # all of the cohort at once
    for wave in (1, 3):
        trial = trained(method, wave)
        assert most(trial) == wave
        assert equal(trial.model, whole.model)
        assert trial.strategy.ledger.to_dict() == whole.strategy.ledger.to_dict()
        assert trial.strategy.digest == whole.strategy.digest
        assert trial.notes == whole.notes


@pytest.mark.parametrize("wave", [1, 2])
@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "fsl_sage"])
def test_whoever_does_not_answer_holds_up_nobody(method: str, wave: int) -> None:
    trial = trained(method, wave, Fault("drop", {0, 2}, {2}))
    assert [(r.replies, r.failures) for r in trial.strategy.records[1:]] == [(4, 0), (2, 2)]
    assert trial.notes.count("no reply within 0.05 s.") == 2


def test_a_late_reply_is_thrown_away() -> None:
    trial = trained("ho_sfl", 1, Fault("late", {1}, {1}, "forward"), rounds=3)
    assert [r.failures for r in trial.strategy.records[1:]] == [1, 0, 0]
    assert not trial.grid._replies and trial.strategy._late == {}


def test_a_worker_that_died_is_asked_again_in_its_own_place() -> None:
    trial = trained("frozen", 2, Fault("die", {0, 1}, {1}, times=2))
    assert most(trial) == 2
    assert [(r.replies, r.failures) for r in trial.strategy.records[1:]] == [(4, 0), (4, 0)]
    assert trial.notes.count("is asked again") == 2


def test_a_request_that_nobody_takes_leaves_room_for_the_next() -> None:
    trial = begin(tiny.task(), "frozen")
    grid = trial.grid
    assert isinstance(grid, SlowGrid)
    grid.refused = {grid.nodes[0], grid.nodes[2]}
    members = [Member(index, node) for index, node in enumerate(grid.nodes)]
    exchange = Exchange(grid, Ledger(), 60.0, {}, "frozen", str, wave=1)
    request = JoinRequest(trial.strategy.setup)
    with identity(1, SUPERLINK):
        found = exchange.send(dict.fromkeys(members, request), JoinReply.from_reader)
    assert [member.partition for member in found] == [1, 3]
    assert exchange.tally.failures == 2 and grid.most == 1


def test_what_is_pushed_between_replies_waits_for_those_before_it() -> None:
    """Requests of the next step leave once all of this step have, in the order of the pushes."""
    trial = begin(tiny.task(), "frozen")
    grid = trial.grid
    members = [Member(index, node) for index, node in enumerate(grid.nodes)]
    exchange = Exchange(grid, Ledger(), 60.0, {}, "frozen", str, wave=2)
    request = JoinRequest(trial.strategy.setup)
    with identity(1, SUPERLINK):
        exchange.push(dict.fromkeys(members, request))
        for member, _ in exchange.in_turn(members, JoinReply.from_reader):
            exchange.push({member: request})
        asked = [client for _, client, _ in grid.requests]
        assert sorted(asked[:4]) == [0, 1, 2, 3] and most(trial) == 2
        assert len(exchange.collect(JoinReply.from_reader)) == 4
    assert Counter(client for _, client, _ in grid.requests) == dict.fromkeys(range(4), 2)


def test_a_flight_counts_what_is_expected_of_a_client() -> None:
    request: Any = None
    flight, member, other = Flight(), Member(0, 1), Member(1, 2)
    flight.add([Sent(member, request), Sent(member, request), Sent(other, request)])
    first, second = flight.take(2)
    flight.sent("a", first)
    flight.sent("b", second)
    assert flight.take(0) == [] and flight.waits(other)
    assert flight.land("a") == first and flight.land("a") is None
    flight.close(first)
    assert flight.waits(member)
    assert flight.overdue(60.0, 0.0) == []
    assert flight.overdue(-1.0, 0.0) == [("b", second)] and flight.pending == {}
    flight.close(second)
    assert not flight.waits(member) and not flight.waits(Member(9, 9))
    assert flight.take(None) == [Sent(other, request)]
