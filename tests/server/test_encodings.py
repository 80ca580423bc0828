"""Runs in which smashed data and cut gradients travel as float16, each way and both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.wire import content_bytes
from tests import tiny
from tests.local_grid import Fault
from tests.tiny import equal, train

HALF: dict[str, Any] = {"smashed": "float16", "gradients": "float16"}
SENDERS = (
    "ho_sfl",
    "frozen",
    "splitfed_v1",
    "splitfed_v2",
    "cse_fsl",
    "heron",
    "fsl_sage",
    "mu_splitfed",
    "zo_sfl",
)


@pytest.mark.parametrize("method", SENDERS)
def test_half_precision_sends_half_the_bytes_and_the_ledger_is_the_messages(method: str) -> None:
    plain, half = train(tiny.task(), method, rounds=2), train(tiny.task(), method, rounds=2, **HALF)
    for way in ("up", "down"):
        before, after = (getattr(trial.strategy.ledger, way) for trial in (plain, half))
        for name in before:
            halved = name in ("smashed", "gradients")
            if name != "control":
                assert after[name] * (2 if halved else 1) == before[name], (way, name)
    ledger = half.strategy.ledger
    assert ledger.up["smashed"]
    assert bool(ledger.down["gradients"]) == half.strategy.facts.gradients
    assert ledger.bytes_down == sum(content_bytes(c) for _, _, c in half.grid.requests)
    assert ledger.bytes_up == sum(content_bytes(c) for _, _, c in half.grid.replies)
    assert half.total("replies") == 8


@pytest.mark.parametrize(
    "options", [{"smashed": "float16"}, {"gradients": "float16"}, HALF], ids=str
)
@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2"])
def test_half_precision_learns_about_as_well(method: str, options: dict[str, Any]) -> None:
    def loss(**chosen: Any) -> float:
        trial = train(tiny.task(each=24), method, rounds=25, server_lr=0.3, eval_every=25, **chosen)
        first, last = (trial.strategy.records[at].metrics["loss"] for at in (0, -1))
        assert last < 0.9 * first
        return float(last)

    plain = loss()
    assert loss(**options) == pytest.approx(plain, rel=0.02)


def test_the_anchor_of_the_probes_is_the_clients_own() -> None:
    trial = train(tiny.task(), "ho_sfl", [Fault("raise", None, {2}, "probe")], rounds=2, **HALF)
    for kind, client, content in trial.grid.replies[-4:]:
        assert kind == "forward"
        kept = trial.grid.contexts[trial.grid.nodes[client]].state.array_records["anchor"]["z"]
        rounded = kept.numpy().astype(np.float16)
        assert not np.array_equal(kept.numpy(), rounded)
        assert content["arrays"]["z"].data.endswith(rounded.tobytes())


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "heron"])
def test_smashed_data_beyond_float16_cost_their_client_the_round(method: str) -> None:
    shares = [tiny.samples(12, seed) for seed in range(4)]
    shares[2].x.mul_(1e7)  # z is linear here
    trial = train(tiny.task(shares, cut="first"), method, rounds=2, smashed="float16")
    assert [(r.replies, r.failures) for r in trial.strategy.records[1:]] == [(3, 1)] * 2
    assert "Client 2 is left out of this round: " in trial.notes
    assert "The smashed data hold a value of size" in trial.notes
    assert "and float16 ends at 65504; set smashed=bfloat16 or float32" in trial.notes


def once(number: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss that is a million million times as large at one training batch."""
    calls = 0

    def loss(output: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        value = torch.nn.functional.cross_entropy(output, y)
        if not output.requires_grad:
            return value
        calls += 1
        return value * (1e12 if calls == number else 1.0)

    return loss


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ho_sfl", {}),
        ("ho_sfl", {"minibatches": 2}),
        ("splitfed_v1", {}),
    ],
)
def test_cut_gradients_beyond_float16_move_nothing(method: str, options: dict[str, Any]) -> None:
    per_client = int(options.get("minibatches", 1))
    bad = once(4 * per_client + per_client + 1)  # round 2, client 1
    trial = train(tiny.task(loss=bad), method, rounds=3, gradients="float16", **options)
    assert [record.rejected for record in trial.strategy.records] == [0, 0, 1, 0]
    assert "The reply of client 1 is not used: The cut gradients hold a value of" in trial.notes
    assert "set gradients=bfloat16 or float32, or lower the learning rates" in trial.notes
    silent = [Fault("raise", {1}, {2}, times=1)]
    without = train(tiny.task(), method, silent, rounds=3, gradients="float16", **options)
    assert equal(trial.model, without.model)


def test_cut_gradients_that_stay_at_the_server_may_be_large() -> None:
    trial = train(tiny.task(loss=once(6)), "frozen", rounds=3, server_lr=1e-9, **HALF)
    assert trial.total("rejected") == 0


@pytest.mark.parametrize("name", ["smashed", "gradients"])
@pytest.mark.parametrize("method", ["fedavg", "decomfl"])
def test_an_encoding_without_a_cut_is_refused_before_anything_starts(
    method: str, name: str
) -> None:
    says = f"^{name} is 'float16' with method '{method}', whose clients hold the whole model"
    with pytest.raises(ConfigError, match=says):
        read_options({"method": method, name: "float16"})
    read_options({"method": method, name: "float32"})


@pytest.mark.parametrize("name", ["smashed", "gradients"])
def test_an_unknown_encoding_is_refused_before_anything_starts(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'float8'; it must be one of float32, flo"):
        read_options({name: "float8"})
