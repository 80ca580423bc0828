"""A walk from scalars: torch's rule, a replica's bits, and a state that goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfl_flower.errors import ConfigError, JournalError
from sfl_flower.zo import (
    LAWS,
    OPTIMIZERS,
    Directions,
    Entry,
    JournalHeader,
    Key,
    OptimizerSpec,
    Replica,
    Walk,
    params_digest,
    run_key,
)

RUN = run_key("walk")
SIZE = 333
STEPS = 6


def theta() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(4))


def spec(name: str, decay: float = 0.01) -> OptimizerSpec:
    return OptimizerSpec(name, momentum=0.8, weight_decay=decay)


def keys(step: int, probes: int = 3) -> list[Key]:
    return [Key(step + 1, 0, 5, probe) for probe in range(probes)]


def coefficients(step: int, probes: int = 3) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(probes).astype(np.float32)


def rate(step: int) -> float:
    return 0.05 * 0.9**step


def walked(walk: Walk, steps: range) -> None:
    for step in steps:
        walk.step(keys(step), coefficients(step), rate(step))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS[:4])
def test_a_walk_is_torchs_optimizer_on_the_same_gradient(name: str, decay: float, law: str) -> None:
    flat = theta()
    walk = Walk(flat, spec(name, decay), Directions(RUN, law, [(SIZE,)]))
    parameter = torch.nn.Parameter(theta())
    options: dict[str, Any] = {"lr": 1.0, "weight_decay": decay}
    optimizer: torch.optim.Optimizer
    if name in ("sgd", "momentum"):
        momentum = 0.8 if name == "momentum" else 0.0
        optimizer = torch.optim.SGD([parameter], momentum=momentum, **options)
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = kind([parameter], **options)
    for step in range(STEPS):
        us = [Directions(RUN, law, [(SIZE,)]).of(key).values() for key in keys(step)]
        gradient = sum(float(c) * u for c, u in zip(coefficients(step), us, strict=True))
        optimizer.param_groups[0]["lr"] = rate(step)
        parameter.grad = torch.as_tensor(gradient)
        optimizer.step()
        walk.step(keys(step), coefficients(step), rate(step))
    assert float((parameter.detach() - theta()).abs().max()) > 0.05  # it went somewhere
    torch.testing.assert_close(flat, parameter.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("probes", [1, 3, 4, 9])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_walk_has_the_bits_of_a_replica(name: str, law: str, probes: int) -> None:
    flat = theta()
    walk = Walk(flat, spec(name), Directions(RUN, law, [(SIZE,)]))
    header = JournalHeader(RUN, bytes(32), params_digest(theta()), law, spec(name))
    replica = Replica.initial(theta(), header, [(SIZE,)])
    for step in range(STEPS):
        values = coefficients(step, probes)
        replica.apply(Entry(step + 1, rate(step), (5,), 1, probes, values.reshape(1, 1, probes)))
        walk.step(keys(step, probes), values, rate(step))
    assert flat.numpy().tobytes() == replica.theta.numpy().tobytes()
    state = walk.state()
    assert set(state) == ({f"slot.{s}" for s in replica.slots} | {"powers"} if state else set())
    for slot, value in replica.slots.items():
        assert state[f"slot.{slot}"].tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_kept_state_goes_on_to_the_same_bits(name: str) -> None:
    whole, parts = theta(), theta()
    walked(Walk(whole, spec(name), Directions(RUN, "rademacher", [(SIZE,)])), range(STEPS))
    first = Walk(parts, spec(name), Directions(RUN, "rademacher", [(SIZE,)]))
    walked(first, range(2))
    state = {key: value.copy() for key, value in first.state().items()}
    assert bool(state) == (name != "sgd")
    walked(
        Walk(parts, spec(name), Directions(RUN, "rademacher", [(SIZE,)]), state or None),
        range(2, STEPS),
    )
    assert torch.equal(whole, parts)
    if name != "sgd":  # without the state it ends elsewhere
        anew = theta()
        walked(Walk(anew, spec(name), Directions(RUN, "rademacher", [(SIZE,)])), range(2))
        walked(Walk(anew, spec(name), Directions(RUN, "rademacher", [(SIZE,)])), range(2, STEPS))
        assert not torch.equal(whole, anew)


def test_a_state_is_copied_when_it_is_taken_up() -> None:
    walk = Walk(theta(), spec("momentum"), Directions(RUN, "rademacher", [(SIZE,)]))
    walked(walk, range(1))
    state = {key: value.copy() for key, value in walk.state().items()}
    before = state["slot.momentum"].copy()
    walked(
        Walk(theta(), spec("momentum"), Directions(RUN, "rademacher", [(SIZE,)]), state),
        range(1, 3),
    )
    assert np.array_equal(state["slot.momentum"], before)


@pytest.mark.parametrize(
    "change",
    [
        {"slot.momentum": None},
        {"powers": None},
        {"slot.m": np.zeros(SIZE, np.float32)},
        {"slot.momentum": np.zeros(SIZE - 1, np.float32)},
        {"powers": np.ones(3)},
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    walk = Walk(theta(), spec("momentum"), Directions(RUN, "rademacher", [(SIZE,)]))
    walked(walk, range(1))
    state = {k: v for k, v in {**walk.state(), **change}.items() if v is not None}
    with pytest.raises(JournalError, match="does not fit 'momentum' over 333 parameters"):
        Walk(theta(), spec("momentum"), Directions(RUN, "rademacher", [(SIZE,)]), state)


@pytest.mark.parametrize("bad", [theta().double(), theta().reshape(3, 111)])
def test_a_walk_needs_a_flat_float32_vector(bad: Tensor) -> None:
    with pytest.raises(ConfigError, match="flat float32 vector"):
        Walk(bad, spec("sgd"), Directions(RUN, "rademacher", [(SIZE,)]))
