"""Local steps beyond an epoch: several passes over a client's samples in one exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.local_grid import values
from tests.server.test_downlink import heron
from tests.tiny import Trial, equal, train

SAMPLES, EPOCH = 10, 3  # mini-batches of 4, 4 and 2
OPTIONS: dict[str, Any] = {"rounds": 1, "clients": 2, "server_lr": 0.1}
OWN: dict[str, dict[str, Any]] = {
    "heron": {"probes": 2},
    "cse_fsl": {},
    "fsl_sage": {"align_epochs": 2},
}


def run(method: str, **options: Any) -> Trial:
    shares = [tiny.samples(SAMPLES, seed) for seed in (0, 1)]
    return train(tiny.task(shares), method, **{**OPTIONS, **OWN[method], **options})


@pytest.mark.parametrize("method", OWN)
def test_steps_beyond_an_epoch_pass_over_all_samples_again_in_a_new_order(method: str) -> None:
    """At a client rate of 0 smashed data tell which samples a step took."""
    trial = run(method, local_steps=2 * EPOCH, client_lr=0.0)
    assert trial.strategy.ledger.samples == 2 * 2 * SAMPLES
    brought = [
        values(content["arrays"]["z"])
        for kind, client, content in trial.grid.replies
        if kind != "join" and client == 0
    ]
    assert len(brought) == (2 if method == "fsl_sage" else 1)  # step 0 comes ahead
    z = np.concatenate(brought)
    first, second = z[:SAMPLES], z[SAMPLES:]
    assert len(second) == SAMPLES and not np.array_equal(first, second)
    # The last bits of a row depend on what it is multiplied beside: samples are told by nearness.
    same = np.abs(first[:, None] - second[None]).max(axis=-1) < 1e-5
    assert (same.sum(axis=0) == 1).all() and (same.sum(axis=1) == 1).all()


def test_herons_walk_of_two_epochs_is_rebuilt_from_its_scalars() -> None:
    options: dict[str, Any] = {"local_steps": 2 * EPOCH, "upload_every": EPOCH, "client_lr": 0.05}
    scalars, weights = (run("heron", uplink=up, **options) for up in ("scalars", "weights"))
    assert equal(scalars.model, weights.model)
    assert scalars.strategy.ledger.up["scalars"] == 2 * 4 * 2 * EPOCH * 2


def test_walks_of_two_epochs_come_down_to_the_same_bits() -> None:
    options: dict[str, Any] = {"local_steps": 7, "rounds": 3}  # beyond two epochs of 9 samples
    weights, walks = (heron(downlink=down, **options) for down in ("weights", "scalars"))
    assert equal(weights.model, walks.model)
    assert walks.strategy.ledger.down["scalars"] == 2 * 4 * 4 * 4 * 7 * 2
