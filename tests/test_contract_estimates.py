"""What the contract says of every method, for each way of making steps of scalars.

HO-SFL's clients follow a journal, HERON-SFL's walk on their own and are rebuilt from scalars.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfl_flower.report import RunDirectory
from sfl_flower.task import SplitTask
from tests import tiny
from tests.local_grid import Fault
from tests.test_contract import history, same
from tests.tiny import Trial, begin, equal, start, train

METHODS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"minibatches": 2, "probes": 3, "client_lr": 0.01},
    "heron": {"local_steps": 3, "upload_every": 2, "probes": 3, "client_lr": 0.01},
}
ESTIMATES: dict[str, dict[str, Any]] = {
    "spread": {"scale": "spread", "clip_norm": 1.0},
    "cone": {"cone": 0.6},
    "cone of momentum": {"cone": 0.3, "client_optimizer": "momentum"},
    "rank one": {"direction": "rank_one"},
    "stack": {"direction": "rank_one", "stack": 2},
    "radazo": {"client_optimizer": "radazo"},
    "hiso": {"client_optimizer": "hiso", "client_lr": 0.1},
    "walk": {"walk": True},
    "walk in a cone": {"walk": True, "cone": 0.5, "scale": "spread", "client_optimizer": "adam"},
}
OF_HO_SFL: dict[str, dict[str, Any]] = {
    "channel": {"scalars": "channel"},
    "channel in micro-batches": {"scalars": "channel", "micro_batch": "3", "clip_norm": 0.0},
    "channel, shared, momentum": {
        "scalars": "channel",
        "directions": "shared",
        "client_optimizer": "momentum",
    },
    "two passes": {"server_steps": "batch", "server_passes": 2},
}
"""What HO-SFL alone has, for clients that follow a journal."""
OF_HERON: dict[str, dict[str, Any]] = {
    "guide": {"guide": "public", "clip_norm": 0.5},
    "guide, adam": {
        "guide": "noise",
        "guide_rest": 0.25,
        "guide_momentum": 0.5,
        "client_optimizer": "adam",
    },
    "guide, spread": {"guide": "public", "scale": "spread", "mean": "samples", "micro_batch": "3"},
    "guide, walk": {"guide": "public", "walk": True, "server_optimizer": "adam"},
    "guide, jvp": {"guide": "noise", "estimator": "jvp", "direction": "gaussian"},
    "guide, stack": {"guide": "public", "direction": "rank_one", "stack": 2},
}
"""Guides of a client with a loss of its own; those of HO-SFL have a file of their own."""
CASES = [
    *[(method, estimate) for method in METHODS for estimate in ESTIMATES],
    *[("ho_sfl", estimate) for estimate in OF_HO_SFL],
    *[("heron", estimate) for estimate in OF_HERON],
]
SHARED: dict[str, Any] = {"rounds": 5, "sampled": 2, "server_momentum": 0.9}


def settings(method: str, estimate: str, **more: Any) -> dict[str, Any]:
    return {**SHARED, **METHODS[method], **(ESTIMATES | OF_HO_SFL | OF_HERON)[estimate], **more}


def problem() -> SplitTask:
    return tiny.task(public=lambda: tiny.samples(20, 7))


def trained(method: str, estimate: str, *faults: Fault, **more: Any) -> Trial:
    return train(problem(), method, faults, **settings(method, estimate, **more))


@pytest.mark.parametrize(("method", "estimate"), CASES)
def test_it_moves_the_client_elsewhere_than_without(method: str, estimate: str) -> None:
    trial, plain = (
        trained(method, estimate),
        train(problem(), method, **SHARED, **METHODS[method]),
    )
    first = begin(problem(), method, **settings(method, estimate)).model
    for name in tiny.CLIENT_NAMES:
        assert not bool((trial.model[name] == first[name]).all())
        assert not bool((trial.model[name] == plain.model[name]).all())
    assert [r.failures + r.rejected for r in trial.strategy.records] == [0] * 6
    assert same(trial, trained(method, estimate))


@pytest.mark.parametrize(("method", "estimate"), CASES)
def test_a_stopped_run_goes_on_to_the_same_bits(method: str, estimate: str, tmp_path: Path) -> None:
    whole, resumed = tiny.stopped(problem, tmp_path, 3, method, **settings(method, estimate))
    assert equal(whole.model, resumed.model)
    assert history(RunDirectory(tmp_path / "parts").history) == history(whole.history)


@pytest.mark.parametrize("estimate", ESTIMATES | OF_HO_SFL)
def test_clients_that_were_away_replay_or_download_to_the_same_bits(estimate: str) -> None:
    """Of four clients two take part in a round, so each is behind at its next."""
    replay, download = (trained("ho_sfl", estimate, sync=sync) for sync in ("replay", "download"))
    assert same(replay, download)
    assert replay.strategy.ledger.down["scalars"] > 0


@pytest.mark.parametrize("estimate", ESTIMATES | OF_HERON)
def test_scalars_and_weights_give_the_same_bits(estimate: str) -> None:
    scalars, weights = (trained("heron", estimate, uplink=up) for up in ("scalars", "weights"))
    assert same(scalars, weights)


@pytest.mark.parametrize(("method", "estimate"), CASES)
def test_replies_in_another_order_and_twice_change_nothing(method: str, estimate: str) -> None:
    clean = trained(method, estimate)
    trial = begin(problem(), method, [Fault("twice")], **settings(method, estimate))
    trial.grid._rng.seed(5)
    assert same(clean, start(trial))
