"""What the contract says of HO-SFL, with a guide of the server among its directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from sfl_flower.report import RunDirectory
from sfl_flower.strategies.ho_sfl import HOSFL
from sfl_flower.task import SplitTask
from sfl_flower.wire import content_bytes
from sfl_flower.zo import Journal
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.test_contract import history, same
from tests.tiny import Trial, begin, equal, start, train

WAYS: dict[str, dict[str, Any]] = {
    "own": {"minibatches": 2, "client_optimizer": "adam", "client_lr": 0.01},
    "shared": {"directions": "shared", "minibatches": 2, "clip_norm": 0.5, "guide_rest": 0.25},
    "round": {"server_steps": "round", "estimator": "central", "direction": "gaussian"},
    "drawn": {"guide_samples": 5},
    "orthogonal": {"guide_form": "orthogonal", "guide_samples": 4, "guide_momentum": 0.5},
    "noise": {"guide": "noise", "scale": "spread", "clip_norm": 1.0},
    "jvp": {"estimator": "jvp", "mean": "samples", "micro_batch": "3"},
    "median": {"directions": "shared", "aggregator": "median"},
}
WITHOUT: dict[str, Any] = {
    "guide": "none",
    "guide_rest": 1.0,
    "guide_samples": 0,
    "guide_form": "gradient",
    "guide_momentum": 0.0,
}
SHARED: dict[str, Any] = {"guide": "public", "probes": 3, "rounds": 4, "sampled": 2}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each way of using a guide."""
    name: str = request.param
    return {**SHARED, **WAYS[name]}


def problem(trained: str = "all") -> SplitTask:
    return tiny.task(trained=trained, public=lambda: tiny.samples(20, 7))


def trained(way: dict[str, Any], *faults: Fault, **more: Any) -> Trial:
    return train(problem(), "ho_sfl", faults, **{**way, **more})


def test_every_entry_has_a_guide_and_it_moves_the_client_elsewhere(way: dict[str, Any]) -> None:
    trial, plain = trained(way), trained({**way, **WITHOUT})
    assert [r.failures + r.rejected for r in trial.strategy.records] == [0] * 5
    entries = trial.strategy.journal.entries
    assert len(entries) == 4 and all(entry.guide is not None for entry in entries)
    assert all(entry.guide is None for entry in plain.strategy.journal.entries)
    for name in tiny.CLIENT_NAMES:
        assert not bool((trial.model[name] == plain.model[name]).all())
    assert same(trial, trained(way))
    assert Journal.decode(trial.strategy.journal.encode()).digest == trial.strategy.journal.digest


@pytest.mark.parametrize("subset", ["all", "subspace:2"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    way: dict[str, Any], subset: str, tmp_path: Path
) -> None:
    whole, resumed = tiny.stopped(lambda: problem(subset), tmp_path, 2, **way)
    assert equal(whole.model, resumed.model)
    assert history(RunDirectory(tmp_path / "parts").history) == history(whole.history)
    one, two = ((tmp_path / name / "journal.bin").read_bytes() for name in ("whole", "parts"))
    assert one == two


def test_clients_that_were_away_replay_or_download_to_the_same_bits(way: dict[str, Any]) -> None:
    replay, download = (trained(way, sync=sync) for sync in ("replay", "download"))
    assert same(replay, download)


def test_replies_in_another_order_and_twice_change_nothing(way: dict[str, Any]) -> None:
    trial = begin(problem(), "ho_sfl", [Fault("twice")], **way)
    trial.grid._rng.seed(5)
    assert same(trained(way), start(trial))


def test_the_ledger_is_what_the_messages_hold(way: dict[str, Any]) -> None:
    """With each probe request a guide: 35 signs in 5 bytes, 1 + 5 and 5 + 6 factors."""
    trial = trained(way, sync="download", sampled=0)
    ledger = trial.strategy.ledger
    assert ledger.bytes_down == sum(content_bytes(sent) for _, _, sent in trial.grid.requests)
    asked = sum(kind == "probe" for kind, _, _ in trial.grid.requests)
    assert ledger.down["keys"] == asked * (8 + 4 * 17 + 5) == 4 * 4 * 81
    assert ledger.up["scalars"] == asked * way.get("minibatches", 1) * (3 + 1) * 4


@pytest.mark.parametrize("kind", ["drop", "mute", "late"])
def test_a_client_that_is_gone_after_its_lambda_is_left_out(kind: str) -> None:
    trial = trained(SHARED, Fault(kind, {1}, {2, 3}, "probe"), sampled=0)
    assert [r.replies for r in trial.strategy.records] == [0, 4, 3, 3, 4]
    assert all(entry.guide is not None for entry in trial.strategy.journal.entries)


@pytest.mark.parametrize("column", [0, -1])
@pytest.mark.parametrize("name", ["own", "median"])
def test_scalars_that_cannot_be_are_left_out(name: str, column: int) -> None:
    way = {**SHARED, **WAYS[name]}

    def lie(content: RecordDict) -> RecordDict:
        scalars = values(content.array_records["arrays"]["scalars"]).copy()
        scalars[:, column] = 1e20
        return changed(content, arrays={"scalars": scalars})

    def shorten(content: RecordDict) -> RecordDict:
        scalars = values(content.array_records["arrays"]["scalars"])
        return changed(content, arrays={"scalars": np.ascontiguousarray(scalars[:, :3])})

    for change in (lie, shorten):
        trial = trained(way, Fault("change", {1}, {2}, "probe", 1, change), sampled=0)
        lost = trained(way, Fault("mute", {1}, {2}, "probe", 1), sampled=0)
        assert trial.total("rejected") == 1
        assert equal(trial.model, lost.model)


def test_without_a_lambda_a_round_has_no_guide() -> None:
    """Nobody's smashed data arrive in round 2: no entry, and the run goes on."""
    trial = trained(SHARED, Fault("mute", types="forward", rounds={2}), sampled=0)
    assert [entry.round for entry in trial.strategy.journal.entries] == [1, 3, 4]


def test_a_round_whose_guide_is_none_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no λ tells anything: what probes measured is in the journal, times guide_rest."""
    monkeypatch.setattr(HOSFL, "_guide", lambda *given: None)
    way = {**SHARED, "rounds": 1, "guide_rest": 0.25}
    (entry,), (plain,) = (
        trained(each).strategy.journal.entries for each in (way, {**way, **WITHOUT})
    )
    assert entry.guide is None and np.abs(plain.coefficients).max() > 0
    np.testing.assert_allclose(entry.coefficients, 0.25 * plain.coefficients, rtol=1e-6)
