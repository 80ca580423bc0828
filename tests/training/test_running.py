"""How the server half runs: in bfloat16, and compiled."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import InternalTorchDynamoError
from torch.nn.functional import cross_entropy

from sfl_flower.comparison.comparable import check_problem, problem_of
from sfl_flower.comparison.entries import method_entries
from sfl_flower.config import RunConfig
from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.methods import METHODS
from sfl_flower.server.trainer import Trainer
from sfl_flower.training import running
from sfl_flower.training.running import Running
from tests import tiny
from tests.tiny import begin, equal, train

BETWEEN = 1 + 2**-8
"""Between two bfloat16 numbers, 1 and 1 + 2^-7; it rounds to the even one, 1."""


def line() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def test_bfloat16_multiplies_rounded_numbers_and_gives_float32() -> None:
    x = torch.tensor([[BETWEEN]], requires_grad=True)
    assert Running(line())(x).item() == BETWEEN
    low = Running(line(), "bfloat16")
    out = low(x)
    assert out.dtype == torch.float32 and out.item() == 1.0
    lam, weight = torch.autograd.grad(out.sum() * BETWEEN, [x, *low.module.parameters()])
    assert (lam.dtype, lam.item()) == (torch.float32, 1.0)  # λ comes back through bfloat16
    assert (weight.dtype, weight.item()) == (torch.float32, 1.0)
    assert all(value.dtype == torch.float32 for value in low.module.parameters())


def test_outputs_in_a_dict_are_float32_too_and_whole_numbers_stay() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x @ x.T, "largest": x.argmax(dim=1)}

    out = Running(Named(), "bfloat16")(torch.ones(2, 3))
    assert {name: value.dtype for name, value in out.items()} == {
        "logits": torch.float32,
        "largest": torch.int64,
    }


class Breaks:
    """Stands for a program that torch cannot make."""

    def __call__(self, x: Tensor) -> Tensor:
        raise InternalTorchDynamoError("no g++")


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running, "_program", lambda module: Breaks())
    log = logging.getLogger("flwr")
    monkeypatch.setattr(log, "propagate", True)
    half = Running(line(), compiled=True)
    known = [half.compiled]
    with caplog.at_level(logging.WARNING, "flwr"):
        outputs = [half(torch.tensor([[3.0]])).item() for _ in range(2)]
    assert outputs == [3.0, 3.0] and [*known, half.compiled] == [True, False]
    assert len(caplog.records) == 1
    assert "runs uncompiled" in caplog.text and "g++ or clang++" in caplog.text


def test_a_batch_at_fault_leaves_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_program", lambda module: Breaks())
    half = Running(line(), compiled=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        half(torch.ones(2, 7))
    assert half.compiled


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_gradients_are_those_of_the_module() -> None:
    def trainer(compiled: bool) -> Trainer:
        with seeded_torch("test"):
            module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        config = RunConfig(server_compile=compiled)
        return Trainer(module, cross_entropy, 2, config, as_told=True)

    plain, compiled = trainer(False), trainer(True)
    rng = np.random.default_rng(0)
    for size in (5, 3):  # another size makes another program
        z, y = rng.standard_normal((size, 3)).astype(np.float32), np.arange(size) % 2
        wanted, found = (half.gradients(z, y, (1, 0, 0)) for half in (plain, compiled))
        np.testing.assert_allclose(found.lam, wanted.lam, rtol=1e-4, atol=1e-6)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
        for one, other in zip(found.weights, wanted.weights, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert compiled.running.compiled
    assert compiled.tensors().keys() == plain.tensors().keys()
    moved = "server.model.1.running_mean"
    torch.testing.assert_close(compiled.tensors()[moved], plain.tensors()[moved])
    with pytest.raises(WireError, match="cannot use its batch"):
        compiled.gradients(np.ones((4, 7), np.float32), np.zeros(4, np.int64), (1, 0, 0))
    assert compiled.running.compiled


FIRST_ORDER = [name for name, method in METHODS.items() if method.facts.backprop]


@pytest.mark.flower
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_every_method_with_backprop_on_the_server_trains_in_bfloat16(method: str) -> None:
    plain, low = (
        train(tiny.task(), method, rounds=2, server_precision=name)
        for name in ("float32", "bfloat16")
    )
    assert plain.total("rejected") == low.total("rejected") == 0
    assert all(value.dtype == plain.model[name].dtype for name, value in low.model.items())
    server = [name for name in low.model if name.startswith(("hidden", "out"))]
    assert all(not torch.equal(low.model[name], plain.model[name]) for name in server)
    assert all(torch.allclose(low.model[n], plain.model[n], rtol=0.05, atol=0.02) for n in server)


@pytest.mark.flower
def test_a_run_in_bfloat16_goes_on_from_its_checkpoint() -> None:
    options: dict[str, Any] = {"server_precision": "bfloat16", "server_momentum": 0.9}
    whole = train(tiny.task(), rounds=4, **options)
    first = train(tiny.task(), rounds=2, **options)
    later = begin(tiny.task(), rounds=4, **options)
    later.strategy.resume(*first.strategy.checkpoint())
    later.grid = first.grid
    assert equal(tiny.start(later).model, whole.model)


@pytest.mark.flower
@pytest.mark.parametrize("method", [name for name in METHODS if name not in FIRST_ORDER])
def test_without_backprop_on_the_server_both_are_refused(method: str) -> None:
    options: dict[str, Any] = {"server_precision": "bfloat16", "server_compile": True}
    for option, value in options.items():
        says = rf"{option} is .*{value}.* with method '{method}', whose server runs no backprop"
        with pytest.raises(ConfigError, match=says):
            begin(tiny.task(), method, **{option: value})


@pytest.mark.flower
def test_splitfed_v1_does_not_compile_what_lives_for_a_round() -> None:
    with pytest.raises(ConfigError, match="server_compile is True with method 'splitfed_v1'"):
        begin(tiny.task(), "splitfed_v1", server_compile=True)
    with pytest.raises(ConfigError, match="server_precision is 'float16'; it must be one of"):
        begin(tiny.task(), server_precision="float16")


def test_rows_of_another_precision_cannot_stand_beside_one_another() -> None:
    config = {**RunConfig().to_dict(), "task": "digits"}
    rows = [
        problem_of(name, config, {"server_precision": precision})
        for name, precision in (("a", "float32"), ("b", "bfloat16"), ("averages", None))
    ]
    check_problem([rows[0], rows[2]])
    check_problem([rows[1], rows[2]])
    with pytest.raises(ConfigError, match="server_precision is 'bfloat16', not 'float32'"):
        check_problem(rows[:2])


def test_a_comparison_gives_both_to_methods_with_backprop_on_the_server() -> None:
    options = {"server_precision": "bfloat16", "server_compile": False}
    entries, control = method_entries(["ho_sfl", "fedavg"], options, "digits", False)
    given = {entry.label: options.keys() & entry.options.keys() for entry in entries}
    assert given == {"ho_sfl": set(options), "fedavg": set(), "splitfed_v2": set(options)}
    assert control["server_precision"] == "bfloat16"
