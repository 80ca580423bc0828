"""Sealed runs of HO-SFL: who is told what, when, and what follows from the secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfl_flower.data.seeding import round_seal
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.wire.ho_sfl import ForwardRequest, ProbeRequest
from sfl_flower.zo import Entry
from tests import tiny
from tests.local_grid import Fault
from tests.tiny import Trial, equal, train

OWN: list[dict[str, Any]] = [
    {"directions": "shared"},
    {"directions": "own", "minibatches": 2},
    {"pipeline": True},
    {"guide": "public", "guide_rest": 0.5, "directions": "shared"},
    {"client_optimizer": "momentum", "cone": 0.5, "direction": "rank_one"},
]


def trial(**options: Any) -> Trial:
    task = tiny.task(public=lambda: tiny.samples(12, 3))
    return train(task, **{"sealed": True, "rounds": 4, **options})


def entries(found: Trial) -> list[Entry]:
    made: list[Entry] = found.strategy.journal.entries
    return made


@pytest.mark.parametrize("options", OWN)
def test_a_rounds_seal_is_in_its_entry_and_its_directions_are_others(
    options: dict[str, Any],
) -> None:
    found, plain = trial(**options), trial(**options, sealed=False)
    assert [each.seal for each in entries(found)] == [
        round_seal(0, each.round) for each in entries(found)
    ]
    assert [each.seal for each in entries(plain)] == [b""] * len(entries(plain))
    assert not equal(found.model, plain.model)
    assert found.strategy.records[-1].replies == 4  # everybody followed it


def test_clients_are_told_with_the_cut_gradients_and_not_before() -> None:
    found = tiny.begin(tiny.task(), sealed=True, rounds=2)
    told: list[tuple[str, bool]] = []
    grid: Any = found.grid
    own = grid.push_messages

    def push(messages: list[Any]) -> Any:
        for message in messages:
            kind = message.metadata.message_type.rpartition("_")[2]
            content = message.content.array_records
            told.append((kind, any("seal" in record for record in content.values())))
        return own(messages)

    grid.push_messages = push
    tiny.start(found)
    kinds = {kind: {seal for name, seal in told if name == kind} for kind in ("forward", "probe")}
    assert kinds == {"forward": {False}, "probe": {True}}
    assert "seal" not in vars(ForwardRequest).get("__dataclass_fields__", {})
    assert "seal" in ProbeRequest.__dataclass_fields__


def test_it_costs_16_bytes_a_request_and_16_an_entry() -> None:
    """Four clients, three rounds; the entries of two rounds come down as tails."""
    options: dict[str, Any] = {"rounds": 3, "directions": "shared", "sync": "replay"}
    found, plain = trial(**options), trial(**options, sealed=False)
    more = found.strategy.ledger.down["keys"] - plain.strategy.ledger.down.get("keys", 0)
    assert more == 16 * 4 * 3 + 16 * 4 * 2


def test_seals_follow_from_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trial()
    monkeypatch.setenv("SFL_SECRET", "long and random")
    one, same = trial(), trial()
    assert equal(one.model, same.model) and one.strategy.digest == same.strategy.digest
    assert entries(one)[0].seal != entries(plain)[0].seal
    seals = [each.seal for each in entries(one)]
    assert len(set(seals)) == len(seals) == 4


def test_without_a_secret_a_person_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFL_SECRET", raising=False)
    (told,) = [each for each in HOSFLSettings(sealed=True).warnings() if "SFL_SECRET" in each]
    assert told.startswith("sealed=true without SFL_SECRET: seals follow from the run's seed alone")
    assert not any("SFL_SECRET" in each for each in HOSFLSettings().warnings())
    monkeypatch.setenv("SFL_SECRET", "x")
    assert not any("SFL_SECRET" in each for each in HOSFLSettings(sealed=True).warnings())


@pytest.mark.parametrize("options", [OWN[0], OWN[2], OWN[3]])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    options: dict[str, Any], tmp_path: Path
) -> None:
    task = tiny.task(public=lambda: tiny.samples(12, 3))
    shared: dict[str, Any] = {"sealed": True, "rounds": 5, **options}
    whole, resumed = tiny.stopped(lambda: task, tmp_path, 3, **shared)
    assert equal(whole.model, resumed.model)
    assert whole.history[-1].digest == resumed.history[-1].digest


def test_a_client_that_was_away_replays_what_it_missed() -> None:
    """Client 1 answers no message of rounds 2 and 3; it comes back by replay in round 4."""
    away = [Fault("raise", clients={1}, rounds={2, 3})]
    found = train(tiny.task(), faults=away, sealed=True, rounds=5, sync="replay")
    assert [record.replies for record in found.strategy.records[1:]] == [4, 3, 3, 4, 4]
    assert np.isfinite(found.strategy.records[-1].metrics["loss"])
