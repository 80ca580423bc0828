"""What clients say of their memory: that of training, not that of building the model."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sfl_flower.methods import METHODS
from tests import tiny
from tests.tiny import train

WIDE = 50_000
"""Width of the server half: some megabytes that no client has."""

WHOLE = ("fedavg", "decomfl")
NOT_ALONE = (*WHOLE, "u_shaped")
"""Methods whose clients hold more; features of that width, before a tail."""
WITHOUT_STEPS = ("mu_splitfed", "frozen", "ho_sfl")


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, WIDE), nn.Linear(WIDE, 3))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in NOT_ALONE])
def test_a_peak_is_that_of_training_the_client_half(method: str) -> None:
    options: dict[str, Any] = {} if method in WITHOUT_STEPS else {"local_steps": 2}
    rates: dict[str, Any] = (
        {} if method == "mu_splitfed" else {"server_lr": 1e-9}
    )  # nothing is learned here
    trial = train(tiny.task(build=wide, cut="1"), method, rounds=2, **options, **rates)
    assert 0 < trial.strategy.ledger.client_peak_bytes < 4 * WIDE
