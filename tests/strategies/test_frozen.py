from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from tests.tiny import CLIENT_NAMES, begin, equal, start, train

pytestmark = pytest.mark.flower


def steps(trial: tiny.Trial) -> int:
    """Return the server's optimiser steps, as Adam counts them."""
    state = trial.strategy.server.optimizer.state_dict()["state"]
    return int(next(iter(state.values()))["step"])


@pytest.mark.parametrize("server_steps", ["round", "batch"])
def test_the_client_half_keeps_its_bits(server_steps: str) -> None:
    trial = begin(tiny.task(), "frozen", rounds=4, server_steps=server_steps)
    before = trial.model
    after = start(trial).model
    assert all(torch.equal(before[name], after[name]) for name in CLIENT_NAMES)
    assert not equal(before, after)
    assert trial.strategy.version == 0
    assert trial.strategy.ledger.up["weights"] == 0


@pytest.mark.parametrize(
    ("server_steps", "method"), [("round", "ho_sfl"), ("batch", "splitfed_v2")]
)
def test_as_many_server_steps_as_the_method_beside_it(server_steps: str, method: str) -> None:
    options: dict[str, Any] = {"rounds": 3, "server_optimizer": "adam"}
    frozen = train(tiny.task(), "frozen", server_steps=server_steps, **options)
    beside = train(tiny.task(), method, **options)
    assert steps(frozen) == steps(beside) == (3 if server_steps == "round" else 12)
    assert frozen.strategy.ledger.samples == beside.strategy.ledger.samples


def test_ho_sfl_that_never_moves_its_clients_is_the_frozen_client() -> None:
    frozen = train(tiny.task(), "frozen", minibatches=2)
    still = train(tiny.task(), "ho_sfl", minibatches=2, client_lr=0.0)
    assert equal(frozen.model, still.model)


def test_it_is_one_exchange_a_round() -> None:
    trial = train(tiny.task(), "frozen", rounds=3)
    assert dict(trial.grid.log) == {
        **{("join", c): 1 for c in range(4)},
        **{("forward", c): 3 for c in range(4)},
    }
