"""How much of the journal the virtual clients of one process replay."""

from __future__ import annotations

import pytest
from flwr.app import Message

from sfl_flower.node.sync import forget_recent
from sfl_flower.zo import Entry, Replica
from tests import tiny
from tests.tiny import Trial, begin, equal, start

ROUNDS = 8


def replayed(monkeypatch: pytest.MonkeyPatch, alone: bool) -> tuple[Trial, list[int]]:
    """Run rounds of two clients out of four; return the rounds of the entries they applied."""
    rounds: list[int] = []
    apply, at_client = Replica.apply, False
    trial = begin(tiny.task(), "ho_sfl", rounds=ROUNDS, sampled=2, sync="replay")
    deliver = trial.grid.deliver

    def noted(replica: Replica, entry: Entry) -> None:
        if at_client:
            rounds.append(entry.round)
        apply(replica, entry)

    def delivered(message: Message) -> Message | None:
        nonlocal at_client
        if alone:
            forget_recent()
        at_client = True
        try:
            return deliver(message)
        finally:
            at_client = False

    trial.grid.deliver = delivered  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(Replica, "apply", noted)
        start(trial)
    return trial, rounds


def test_an_update_is_replayed_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    together, once = replayed(monkeypatch, alone=False)
    apart, each = replayed(monkeypatch, alone=True)
    assert once and len(once) == len(set(once))
    assert len(each) > len(set(each))
    assert equal(together.model, apart.model)
    assert together.strategy.digest == apart.strategy.digest
