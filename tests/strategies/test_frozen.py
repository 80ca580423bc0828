from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from tests.local_grid import Fault
from tests.tiny import CLIENT_NAMES, begin, equal, run, start, train


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


def still() -> nn.Module:
    """Return a model whose client half has nothing to train, but statistics that travel."""
    model = tiny.with_batch_norm()
    for name in ("first", "norm"):
        model.get_submodule(name).requires_grad_(False)
    return model


@pytest.mark.parametrize("server_steps", ["round", "batch"])
def test_e6_a_client_half_that_is_frozen_is_no_hindrance(server_steps: str) -> None:
    options: dict[str, Any] = {"rounds": 3, "server_steps": server_steps, "server_momentum": 0.9}
    frozen = train(tiny.task(build=still), "frozen", **options)
    trained = train(tiny.task(build=tiny.with_batch_norm), "frozen", **options)
    assert frozen.total("replies") == 12 and frozen.notes == ""
    assert equal(frozen.model, trained.model)  # the option of the task, not the method, differs
    again = train(tiny.task(build=still), "frozen", [Fault("forget", {1}, {2})], **options)
    assert equal(frozen.model, again.model) and again.notes == ""


def test_e6_such_a_run_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(tiny.task(build=still), "frozen", rounds=4)
    run(tiny.task(build=still), "frozen", out=tmp_path / "run", rounds=2)
    resumed = run(tiny.task(build=still), "frozen", out=tmp_path / "run", resume=True, rounds=4)
    assert equal(whole.model, resumed.model)
