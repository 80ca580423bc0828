"""Scalars of probes: precision, the derivatives they estimate, and moments of the estimates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from sfl_flower.errors import TrainingError
from sfl_flower.zo import (
    LAWS,
    Direction,
    Directions,
    Key,
    ParameterVector,
    Probing,
    loss_scalars,
    run_key,
    surrogate_scalars,
)

RUN = run_key("estimators")
CENTRAL = Probing(estimator="central")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small() -> tuple[nn.Module, ParameterVector, Tensor]:
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    vector = ParameterVector(net)
    vector.load(randn(vector.size, seed=1) / 2)
    return net, vector, randn(8, 6, seed=2)


def directions(vector: ParameterVector, count: int, law: str = "rademacher") -> list[Direction]:
    return [vector.directions(RUN, law).of(Key(0, 0, 0, p)) for p in range(count)]


def derivative(net: nn.Module, vector: ParameterVector, f: Callable, u: Tensor) -> float:
    """Exact derivative of ``f(net's output)`` along ``u``, in float64."""
    pieces = u.double().split([torch.Size(shape).numel() for shape in vector.shapes])
    tangent = {
        name: piece.view(shape)
        for name, piece, shape in zip(vector.names, pieces, vector.shapes, strict=True)
    }
    theta_of = dict(net.named_parameters())
    point = {name: theta_of[name].detach().double() for name in vector.names}

    def run(theta: dict[str, Tensor]) -> Tensor:
        value: Tensor = f(functional_call(net, theta, (X.double(),)))
        return value

    slope: Tensor = jvp(run, (point,), (tangent,))[1]
    return float(slope)


X = randn(8, 6, seed=2)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_surrogate_scalars_estimate_the_directional_derivative(law: str, estimator: str) -> None:
    net, vector, x = small()
    with torch.no_grad():
        z = net(x)
    lam = randn(8, 5, seed=3)
    us = directions(vector, 4, law)
    exact = [derivative(net, vector, lambda out: (lam * out).sum(), u.values()) for u in us]

    def error(mu: float) -> Tensor:
        v = surrogate_scalars(
            lambda: net(x), vector, us, Probing(mu=mu, estimator=estimator), z, lam
        )
        assert v.dtype == torch.float32 and v.shape == (4,)
        return v.double() / mu - torch.tensor(exact, dtype=torch.float64)

    scale = max(abs(value) for value in exact)
    assert float(error(1e-2 if estimator == "central" else 1e-3).abs().max()) < 6e-3 * scale
    # Halving mu halves the error of the forward form and quarters that of the central one.
    ratio = error(0.04).abs() / error(0.02).abs()
    assert float(ratio.median()) == pytest.approx(4.0 if estimator == "central" else 2.0, rel=0.15)


def test_probes_against_jvp_in_double_precision() -> None:
    """To 1e-5: the estimator's formula in float64, on the directions of the package."""
    net, vector, x = small()
    lam = randn(8, 5, seed=3).double()
    point = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for u in directions(vector, 3):
        exact = derivative(net, vector, lambda out: (lam * out).sum(), u.values())
        errors = []
        for mu in (1e-4, 1e-5, 1e-6):
            start, moved = 0, {}
            for name, shape in zip(vector.names, vector.shapes, strict=True):
                stop = start + torch.Size(shape).numel()
                moved[name] = point[name] + mu * u.values(start, stop).double().view(shape)
                start = stop
            high = functional_call(net, moved, (x.double(),))
            v = float((lam * (high - functional_call(net, point, (x.double(),)))).sum())
            errors.append(abs(v / mu - exact) / abs(exact))
        assert errors[2] < 1e-5
        assert errors[0] / errors[1] == pytest.approx(10.0, rel=0.05)  # linear in mu


def test_a_client_linear_in_its_parameters_is_exact_for_any_mu() -> None:
    net = nn.Linear(3, 2, bias=False)
    vector = ParameterVector(net)
    vector.load(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    x = torch.tensor([[1.0, 0.0, 2.0]])
    lam = torch.tensor([[1.0, -1.0]])
    (u,) = directions(vector, 1)
    w = u.values().view(2, 3)
    expected = float((w[0, 0] + 2 * w[0, 2]) - (w[1, 0] + 2 * w[1, 2]))
    for mu in (8.0, 1.0, 0.125):
        for estimator in ("forward", "central"):
            z = net(x).detach()
            v = surrogate_scalars(
                lambda: net(x), vector, [u], Probing(mu=mu, estimator=estimator), z, lam
            )
            assert float(v) / mu == expected


def test_loss_scalars_match_their_formula_and_count_their_forwards() -> None:
    net, vector, x = small()
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        value: Tensor = net(x).square().mean()
        return value

    us = directions(vector, 3, "gaussian")
    exact = [derivative(net, vector, lambda out: out.square().mean(), u.values()) for u in us]
    v = loss_scalars(loss, vector, us, Probing(mu=1e-3))
    assert calls == 4 == Probing(3).forwards
    torch.testing.assert_close(v / 1e-3, torch.tensor(exact), rtol=0.05, atol=2e-3)
    v = loss_scalars(loss, vector, us, Probing(mu=1e-2, estimator="central"))
    assert calls == 4 + 6 == 4 + Probing(3, estimator="central").forwards
    torch.testing.assert_close(v / 1e-2, torch.tensor(exact), rtol=2e-3, atol=1e-4)


def test_no_graph_is_built_and_nothing_moves() -> None:
    net, vector, x = small()
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    def forward() -> Tensor:
        out: Tensor = net(x)
        assert not out.requires_grad
        return out

    before = vector.anchor.clone()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z = torch.zeros(8, 5)
        v = surrogate_scalars(forward, vector, directions(vector, 2), CENTRAL, z, z)
        w = loss_scalars(lambda: forward().sum(), vector, directions(vector, 2), Probing())
    assert saved == 0
    assert not v.requires_grad and not w.requires_grad
    assert torch.equal(vector.anchor, before)


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_an_anchor_that_is_given_saves_its_forward_and_changes_no_bit(estimator: str) -> None:
    net, vector, x = small()
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        value: Tensor = net(x).square().mean()
        return value

    us = directions(vector, 3)
    central, probing = estimator == "central", Probing(estimator=estimator)
    alone = loss_scalars(loss, vector, us, probing)
    assert calls == (6 if central else 4)
    with torch.no_grad():
        anchor = loss()
    calls = 0
    given = loss_scalars(loss, vector, us, probing, anchor=anchor)
    assert calls == (6 if central else 3)
    assert torch.equal(alone, given)
    if not central:  # it is the anchor that is given, not one found in secret
        assert not torch.equal(alone, loss_scalars(loss, vector, us, probing, anchor=anchor + 1))


def test_the_scalar_keeps_its_precision() -> None:
    """z of scale 3, λ of scale 1e-5, a difference of scale 1e-3."""
    shape = (32, 128, 768)
    z = 3 * randn(*shape, seed=7)
    z_probe = z + 1e-3 * randn(*shape, seed=8)
    lam = 1e-5 * randn(*shape, seed=9)
    net = nn.Linear(1, 1)
    vector = ParameterVector(net)
    v = surrogate_scalars(lambda: z_probe, vector, directions(vector, 1), Probing(), z, lam)
    exact = float((lam.double() * (z_probe.double() - z.double())).sum())
    assert abs(float(v) - exact) <= 1e-3 * abs(exact)


@pytest.mark.parametrize(
    ("law", "n", "expected", "within"),
    [
        ("rademacher", 200_000, 50, 0.01),
        ("gaussian", 200_000, 52, 0.01),
        ("sphere", 10_000, 50, 0.03),
    ],
)
def test_estimator_moments(law: str, n: int, expected: int, within: float) -> None:
    """With scale 1 for every law: unbiased, second moment d, d + 2, d."""
    d = 50
    g = randn(d, seed=11).double()
    g /= g.norm()
    long = Directions(RUN, "rademacher" if law == "rademacher" else "gaussian", [(d * n,)]).of(
        Key(0)
    )
    u = long.values().double().view(n, d)
    if law == "sphere":
        u = torch.stack(
            [Directions(RUN, law, [(d,)]).of(Key(i)).values() for i in range(n)]
        ).double()
    estimate = (u @ g)[:, None] * u
    assert float(estimate.mean(0) @ g) == pytest.approx(1.0, abs=within)
    assert float(estimate.square().sum(1).mean()) == pytest.approx(expected, rel=2 * within)


def test_a_non_finite_forward_gives_a_non_finite_scalar() -> None:
    _, vector, _ = small()
    z = torch.ones(2, 2)
    v = surrogate_scalars(
        lambda: torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]),
        vector,
        directions(vector, 1),
        Probing(),
        z,
        z,
    )
    assert v.isnan().all()


def test_bad_arguments_are_refused() -> None:
    net, vector, x = small()
    us, z = directions(vector, 1), net(x).detach()
    with pytest.raises(TrainingError, match="smashed data"):
        surrogate_scalars(lambda: net(x), vector, us, Probing(), z, z[:1])
    with pytest.raises(TrainingError, match="same batch"):
        surrogate_scalars(lambda: net(x[:3]), vector, us, Probing(), z, z)
