"""Learning rates go over the rounds as their schedules say, on both sides and for every method."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sfl_flower.config import RunConfig
from sfl_flower.data import model_seed
from sfl_flower.errors import ConfigError
from sfl_flower.server.settings import ClientRateSettings
from sfl_flower.server.trainer import Trainer
from sfl_flower.zo import Walk
from tests import tiny
from tests.tiny import Trial, train

LINEAR = [0.4, 0.3, 0.2, 0.1]
"""0.4 over four rounds, each a quarter of it less."""


def linear(method: str, **options: Any) -> Trial:
    shared = {"rounds": 4, "server_lr": 0.4, "server_lr_schedule": "linear", "eval_every": 4}
    return train(tiny.task(), method, **{**shared, **options})


@pytest.mark.parametrize(
    "method", ["frozen", "ho_sfl", "heron", "cse_fsl", "fsl_sage", "splitfed_v1", "splitfed_v2"]
)
def test_the_server_half_steps_at_the_rate_of_the_round(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    plain = Trainer.step

    def step(half: Trainer, total: float = 1.0) -> None:
        used.append(half.optimizer.param_groups[0]["lr"])
        plain(half, total)

    monkeypatch.setattr(Trainer, "step", step)
    linear(method, **({"head_trainer": "client"} if method == "heron" else {}))
    assert sorted(set(used), reverse=True) == pytest.approx(LINEAR)
    assert used == sorted(used, reverse=True)


def test_so_does_a_head_that_the_server_trains() -> None:
    trial = linear("heron", head_trainer="server", head_lr=0.8)
    assert trial.strategy.server.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert trial.strategy.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_so_do_the_zeroth_order_steps_of_zo_sfl(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    plain = Walk.step

    def step(walk: Walk, keys: Any, factors: Any, lr: float) -> None:
        used.append(lr)
        plain(walk, keys, factors, lr)

    monkeypatch.setattr(Walk, "step", step)
    linear("zo_sfl", client_lr=0.0)
    assert sorted(set(used) - {0.0}, reverse=True) == pytest.approx(LINEAR)


@pytest.mark.parametrize("method", ["splitfed_v1", "splitfed_v2", "fedavg", "zo_sfl", "cse_fsl"])
def test_clients_are_told_the_rate_of_the_round(method: str) -> None:
    options: dict[str, Any] = {
        "client_lr": 0.4,
        "client_lr_schedule": "linear",
        "client_optimizer": "sgd",
    }
    trial = train(tiny.task(), method, rounds=4, server_lr=1e-3, eval_every=4, **options)
    told = [
        json.loads(content["config"]["optimizer"])["lr"]
        for kind, client, content in trial.grid.requests
        if kind != "join" and client == 0
    ]
    assert sorted(set(told), reverse=True) == pytest.approx(LINEAR)


def test_a_rate_of_zero_leaves_the_server_half_alone() -> None:
    still = linear("frozen", server_lr=0.0)
    before = tiny.task().build(model_seed(0)).server.state_dict()
    assert all(torch.equal(still.model[name], value) for name, value in before.items())


def test_rates_by_hand() -> None:
    config = RunConfig(rounds=4, server_lr=2.0, server_lr_schedule="linear", server_lr_warmup=2)
    assert [config.server_rate(r) for r in (1, 2, 3, 4)] == [1.0, 1.5, 1.0, 0.5]
    client = ClientRateSettings(client_lr=2.0, client_lr_schedule="cosine", client_lr_warmup=0.5)
    assert client.client_rate(1, 4) == 1.0
    assert client.client_rate(3, 4) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"server_lr_schedule": "step"}, "server_lr_schedule is 'step'; it must be one of"),
        ({"server_lr_warmup": -1.0}, "server_lr_warmup is -1.0; it must be finite, at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig(**options)
