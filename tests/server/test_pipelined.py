"""Pipelined rounds: one exchange each, what moves when, and what is lost with whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.errors import TrainingError
from sfl_flower.server.pipelined import Probed
from sfl_flower.zo import Entry
from tests import tiny
from tests.local_grid import Fault, changed
from tests.tiny import Trial, equal, train

CLIENTS = 4


def entries(trial: Trial) -> list[Entry]:
    found: list[Entry] = trial.strategy.journal.entries
    return found


def piped(*faults: Fault, **options: Any) -> Trial:
    return train(tiny.task(), faults=faults, pipeline=True, **options)


def counts(trial: Trial, name: str) -> list[int]:
    return [getattr(record, name) for record in trial.strategy.records[1:]]


@pytest.mark.parametrize("server_steps", ["round", "batch"])
@pytest.mark.parametrize("guide", ["none", "public"])
def test_one_round_is_that_of_a_plain_run_to_the_bit(server_steps: str, guide: str) -> None:
    options: dict[str, Any] = {"rounds": 1, "server_steps": server_steps, "guide": guide}
    task = tiny.task(public=lambda: tiny.samples(12, 3))
    plain, found = (train(task, pipeline=pipe, **options) for pipe in (False, True))
    assert equal(plain.model, found.model)
    assert plain.strategy.digest == found.strategy.digest


def test_each_rounds_scalars_move_the_clients_a_round_later_than_in_a_plain_run() -> None:
    """At the anchors of rounds 1 and 2 nothing has moved yet; at that of round 3, round 1's."""
    seen: list[int] = []
    trial = tiny.begin(tiny.task(), pipeline=True, rounds=4)
    own = trial.strategy.learn

    def learn(*given: Any) -> Any:
        seen.append(trial.strategy.version)
        return own(*given)

    trial.strategy.learn = learn
    tiny.start(trial)
    assert seen == [0, 0, 1, 2]
    assert [entry.round for entry in entries(trial)] == [1, 2, 3, 4]
    plain = train(tiny.task(), rounds=4)
    same = [a == b for a, b in zip(entries(plain), entries(trial), strict=True)]
    assert same == [True, False, False, False]


def test_the_second_rounds_scalars_are_those_of_a_client_that_has_not_moved() -> None:
    """A plain run with a client rate of 0 probes at the same place, along the same directions."""
    still = train(tiny.task(), rounds=2, client_lr=0.0)
    moving = piped(rounds=2)
    for one, two in zip(entries(still), entries(moving), strict=True):
        assert np.array_equal(one.coefficients, two.coefficients)


def test_a_round_is_one_exchange_and_the_last_has_one_more() -> None:
    trial = piped(rounds=3)
    kinds = {kind: sum(n for (k, _), n in trial.grid.log.items() if k == kind) for kind in (
        "forward", "pipelined", "probe")}  # fmt: skip
    assert kinds == {"forward": CLIENTS, "pipelined": 2 * CLIENTS, "probe": CLIENTS}
    assert [record.exchanges for record in trial.strategy.records] == [0, 8, 12, 20]
    assert counts(trial, "replies") == [CLIENTS] * 3


def test_bytes_are_those_of_a_plain_run_but_for_fewer_messages() -> None:
    plain, found = (train(tiny.task(), rounds=4, pipeline=pipe) for pipe in (False, True))
    for way in ("up", "down"):
        one, two = (vars(trial.strategy.ledger)[way] for trial in (plain, found))
        for category in ("smashed", "labels", "gradients", "scalars"):
            assert one.get(category, 0) == two.get(category, 0)
        assert sum(two.values()) < sum(one.values())


@pytest.mark.parametrize("options", [{}, {"guide": "public", "server_steps": "batch"}])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Clients that hold nothing more are brought to where they were to probe."""
    shared = {"pipeline": True, "rounds": 5, "client_optimizer": "momentum", **options}
    task = tiny.task(public=lambda: tiny.samples(12, 3))
    whole, resumed = tiny.stopped(lambda: task, tmp_path, 3, **shared)
    assert equal(whole.model, resumed.model)
    assert whole.history[-1].digest == resumed.history[-1].digest
    assert [r.exchanges for r in whole.history] == [r.exchanges for r in resumed.history]


def test_twelve_clients_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """In a file partition 10 stands before partition 2."""
    shared: dict[str, Any] = {"pipeline": True, "rounds": 5, "clients": 12}
    task = tiny.task(clients=12)
    whole, resumed = tiny.stopped(lambda: task, tmp_path, 3, **shared)
    assert equal(whole.model, resumed.model)
    assert [r.version for r in whole.history][-2:] == [r.version for r in resumed.history][-2:]


def test_a_run_in_which_nobody_probes_stops_as_a_plain_one() -> None:
    for form in ("pipelined", "probe"):
        faults = [Fault("raise", types=form), Fault("raise", types="probe")]
        with pytest.raises(TrainingError, match="No usable reply in 2 rounds in a row"):
            train(tiny.task(), faults=faults, pipeline=form == "pipelined", rounds=8, patience=2,
                  sampled=1)  # fmt: skip


def test_the_peak_is_that_of_probes() -> None:
    """Four stacked probes take several times the anchor's memory, in both forms."""
    options: dict[str, Any] = {"rounds": 4, "stack": 4, "direction": "rank_one", "probes": 4}
    plain, found = (train(tiny.task(), pipeline=pipe, **options) for pipe in (False, True))
    peaks = [trial.strategy.ledger.client_peak_bytes for trial in (plain, found)]
    assert peaks[0] == peaks[1] > 0
    assert plain.strategy.ledger.client_flops == found.strategy.ledger.client_flops > 0


def test_who_is_not_asked_again_probes_all_the_same() -> None:
    trial = piped(rounds=6, sampled=2)
    assert [entry.round for entry in entries(trial)] == [1, 2, 3, 4, 5, 6]
    assert all(len(entry.streams) == 2 for entry in entries(trial))
    assert trial.total("failures") == trial.total("rejected") == 0
    asked = [(kind, client) for kind, client, _ in trial.grid.requests if kind == "probe"]
    assert len(asked) > 2  # beside those of the last round


def test_a_client_that_loses_its_state_loses_its_probes_and_goes_on() -> None:
    trial = piped(Fault("forget", {1}, {2}, times=1), rounds=4)
    assert "Client 1 lost its state, and with it its probes of round 2." in trial.notes
    assert [len(entry.streams) for entry in entries(trial)] == [4, 3, 4, 4]
    assert counts(trial, "replies") == [4, 4, 3, 4]
    assert trial.total("failures") == trial.total("rejected") == 0


@pytest.mark.parametrize("kind", ["drop", "mute", "late", "raise", "unavailable"])
def test_a_lost_reply_takes_both_of_its_halves_along(kind: str) -> None:
    trial = piped(Fault(kind, {2}, {3}, "pipelined", times=1), rounds=4)
    assert [len(entry.streams) for entry in entries(trial)] == [4, 3, 3, 4]
    assert trial.total("failures") == 1
    assert torch.isfinite(tiny.flat(trial.model, tiny.CLIENT_NAMES)).all()


def test_replies_that_come_twice_change_nothing() -> None:
    once, twice = piped(rounds=4), piped(Fault("twice"), rounds=4)
    assert equal(once.model, twice.model)


def drop_smashed(content: Any) -> Any:
    return changed(content, arrays={"z": None, "y": None}, config={"version": None})


def drop_scalars(content: Any) -> Any:
    return changed(content, arrays={"scalars": None})


def more_scalars(content: Any) -> Any:
    return changed(content, arrays={"scalars": np.zeros((1, 9), np.float32)})


def infinite(content: Any) -> Any:
    return changed(content, arrays={"scalars": np.full((1, 4), np.inf, np.float32)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_smashed, "asked was a pipelined reply"),
        (drop_scalars, "asked was a pipelined reply"),
        (more_scalars, "it has scalars of shape (1, 9), asked was (1, 4)"),
        (infinite, "scalars"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_is_refused_whole(change: Any, said: str) -> None:
    trial = piped(Fault("change", {1}, {2}, "pipelined", 1, change), rounds=3)
    assert said in trial.notes
    assert trial.total("rejected") == 1
    assert [len(entry.streams) for entry in entries(trial)] == [3, 3, 4]


def test_a_client_that_went_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny.begin(tiny.task(), pipeline=True, rounds=3)
    own = trial.strategy.learn

    def learn(round: int, *given: Any) -> Any:
        if round == 1:
            left = [node for node in trial.grid.nodes if node != trial.grid.nodes[3]]
            monkeypatch.setattr(trial.grid, "get_node_ids", lambda: left)
        return own(round, *given)

    trial.strategy.learn = learn
    tiny.start(trial)
    assert "Client 3 is left out of this round: it went before it could probe." in trial.notes
    assert [len(entry.streams) for entry in entries(trial)] == [3, 3, 3]


def test_what_is_under_way_survives_a_checkpoint() -> None:
    lam = np.arange(6, dtype=np.float32).reshape(3, 2)
    held = Probed(7, {4: 3, 1: 5}, {4: lam}, scalars={1: lam[:1]})
    found = Probed.from_tensors(held.tensors())
    assert found is not None
    assert (found.round, found.used, found.guide) == (7, {1: 5, 4: 3}, None)
    assert np.array_equal(found.lam[4], lam) and np.array_equal(found.scalars[1], lam[:1])
    assert Probed.from_tensors({}) is None
    many = Probed(7, {}, dict.fromkeys((2, 10), lam)).tensors()
    found = Probed.from_tensors(dict(sorted(many.items())))
    assert found is not None and list(found.lam) == [2, 10]
