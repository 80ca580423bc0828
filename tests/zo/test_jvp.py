"""Exact directional derivatives: autograd's, the limit of differences, and what learns by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.errors import ConfigError
from sfl_flower.zo import (
    ESTIMATORS,
    LAWS,
    Key,
    ParameterVector,
    Probing,
    loss_scalars,
    run_key,
    surrogate_scalars,
)
from sfl_flower.zo.jvp import derivative
from tests import tiny
from tests.tiny import begin, start

RUN, EXACT = run_key("jvp"), Probing(estimator="jvp")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolutional() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3), nn.Tanh(),
    )  # fmt: skip
    for number, parameter in enumerate(net.parameters()):
        parameter.data = randn(*parameter.shape, seed=50 + number) / 2
    return net


def test_in_float64_it_is_autograds_derivative() -> None:
    net = convolutional().double()
    x, lam = randn(5, 2, 6, 6).double(), randn(5, 3, seed=1).double()
    parameters = list(net.parameters())
    along = [randn(*p.shape, seed=2 + i).double() for i, p in enumerate(parameters)]
    gradients = torch.autograd.grad((lam * net(x)).sum(), parameters)
    exact = float(sum((g * u).sum() for g, u in zip(gradients, along, strict=True)))
    before = [p.detach().clone() for p in parameters]
    found = derivative(lambda: net(x), parameters, along)
    assert found is not None
    assert abs(float((lam * found).sum()) - exact) <= 1e-12 * abs(exact)
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert torch.autograd.forward_ad._current_level == -1


@pytest.mark.parametrize("law", LAWS)
def test_both_kinds_of_scalars_are_autograds_derivatives(law: str) -> None:
    net = convolutional()
    vector, x, y = ParameterVector(net), randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    us, lam = vector.directions(RUN, law).of_step(1, 0, 0, 3), randn(5, 3, seed=1)
    bits = vector.anchor.clone()

    def along(value: Tensor) -> list[float]:
        flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, vector.parameters)])
        return [float(flat.double() @ u.values().double()) for u in us]

    def loss() -> Tensor:
        value: Tensor = functional.cross_entropy(net(x), y)
        return value

    z = net(x).detach()
    projected = surrogate_scalars(lambda: net(x), vector, us, EXACT, z, lam)
    torch.testing.assert_close(
        projected, torch.tensor(along((lam * net(x)).sum())), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        loss_scalars(loss, vector, us, EXACT), torch.tensor(along(loss())), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(vector.anchor, bits)
    assert not projected.requires_grad


def test_it_is_the_limit_of_central_differences() -> None:
    """In float64, the formula of both: the distance falls with the square of mu."""
    net, x = (
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double(),
        randn(8, 6).double(),
    )
    parameters = list(net.parameters())
    along = [randn(*p.shape, seed=2 + i).double() for i, p in enumerate(parameters)]
    exact = derivative(lambda: net(x), parameters, along)
    assert exact is not None

    def central(mu: float) -> Tensor:
        with torch.no_grad():
            sides = []
            for step in (mu, -2 * mu, mu):
                for p, u in zip(parameters, along, strict=True):
                    p.add_(step * u)
                sides.append(net(x))
        found: Tensor = (sides[0] - sides[1]) / (2 * mu)
        return found

    errors = [float((central(mu) - exact).abs().max()) for mu in (1e-2, 1e-3)]
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_the_probe_length_changes_no_bit_and_a_scalar_is_the_derivative() -> None:
    net = nn.Linear(3, 2, bias=False)
    vector = ParameterVector(net)
    vector.load(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    x, lam = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    u = vector.directions(RUN, "rademacher").of(Key(0))
    w = u.values().view(2, 3)
    expected = float((w[0, 0] + 2 * w[0, 2]) - (w[1, 0] + 2 * w[1, 2]))
    for mu in (1e-12, 1e-3, 1e6):
        probing = Probing(mu=mu, estimator="jvp")
        v = surrogate_scalars(lambda: net(x), vector, [u], probing, net(x).detach(), lam)
        assert float(v) == expected
        assert probing.unit == 1.0


def test_one_forward_a_probe_and_none_at_the_anchor() -> None:
    net = nn.Linear(6, 1)
    vector, x, calls = ParameterVector(net), randn(4, 6), 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        value: Tensor = net(x).square().mean()
        return value

    us = vector.directions(RUN, "rademacher").of_step(1, 0, 0, 3)
    loss_scalars(loss, vector, us, EXACT)
    assert calls == 3 == Probing(3, estimator="jvp").forwards
    assert ESTIMATORS["jvp"].cost == 3.0


def test_a_tied_parameter_moves_wherever_it_is_used() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    vector, x = ParameterVector(net), randn(4, 3)
    (u,) = vector.directions(RUN, "gaussian").of_step(1, 0, 0, 1)
    (gradient,) = torch.autograd.grad(net(x).sum(), vector.parameters)
    found = loss_scalars(lambda: net(x).sum(), vector, [u], EXACT)
    assert float(found) == pytest.approx(float(gradient.reshape(-1) @ u.values()), rel=1e-5)


class Attention(nn.Module):
    """Each sample attends to itself; torch's fused kernel has no forward mode on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        one = x[:, None, None]
        return functional.scaled_dot_product_attention(one, one, one)[:, 0, 0]


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def half(layer: nn.Module) -> nn.Module:
    model = tiny.model()
    model.act = nn.Sequential(model.get_submodule("act"), layer)
    return model


@pytest.mark.flower
@pytest.mark.parametrize("method", ["ho_sfl", "heron", "decomfl"])
def test_an_operation_without_a_forward_mode_is_found_before_training(method: str) -> None:
    says = r"estimator=jvp cannot differentiate .*'.*: .*scaled_dot_product.*Use estimator=central"
    with pytest.raises(ConfigError, match=says):
        begin(tiny.task(build=lambda: half(Attention())), method, rounds=1, estimator="jvp")
    begin(tiny.task(build=lambda: half(Attention())), method, rounds=1, estimator="central")


@pytest.mark.flower
def test_an_output_that_is_detached_is_found_before_training() -> None:
    with pytest.raises(ConfigError, match="estimator=jvp finds no derivative at the output"):
        begin(tiny.task(build=lambda: half(Detached())), "ho_sfl", rounds=1, estimator="jvp")


LEARNS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"probes": 16, "client_lr": 0.3, "server_lr": 0.3},
    "heron": {"probes": 16, "local_steps": 2, "client_lr": 0.3, "server_lr": 0.3},
    "decomfl": {"probes": 16, "local_steps": 2, "client_lr": 0.1},
}


@pytest.mark.flower
@pytest.mark.parametrize("method", LEARNS)
def test_it_learns(method: str) -> None:
    trial = begin(tiny.task(), method, rounds=25, estimator="jvp", **LEARNS[method])
    start(trial)
    losses = [record.loss for record in trial.strategy.records[1:]]
    assert all(record.replies == 4 for record in trial.strategy.records[1:])
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.flower
@pytest.mark.parametrize("method", LEARNS)
def test_its_update_is_that_of_central_differences_but_for_their_error(method: str) -> None:
    models = {}
    for name in ("jvp", "central"):
        trial = begin(tiny.task(), method, rounds=1, estimator=name, mu=1e-2, **LEARNS[method])
        models["before"] = trial.model
        models[name] = start(trial).model
    moved, apart = (
        sum(float((models[a][k] - models[b][k]).square().sum()) for k in models["jvp"]) ** 0.5
        for a, b in (("jvp", "before"), ("jvp", "central"))
    )
    assert moved > 1e-3
    assert apart < 1e-3 * moved
