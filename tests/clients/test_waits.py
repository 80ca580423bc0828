"""A host hands a GPU its probes one after another and waits for none of them.

Forward-mode derivatives do not pass through the device that stands in for a GPU, so `jvp` is not
among the estimators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.training.measures import IGNORED, cross_entropy
from sfl_flower.training.meter import PeakMemory
from sfl_flower.zo import (
    LAWS,
    ParameterVector,
    Probing,
    Sweep,
    loss_scalars,
    run_key,
    surrogate_scalars,
)
from tests import tiny
from tests.second_device import SECOND, second_device, waits
from tests.tiny import train

RUN = run_key("waits")


def count(method: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """Return what a host waits for in a run whose clients compute on the second device."""
    with second_device() as find, waits() as seen:
        monkeypatch.setattr("sfl_flower.node.node.find_device", find)
        monkeypatch.setattr("sfl_flower.node.node.PeakMemory", lambda device: PeakMemory("cpu"))
        done = train(tiny.task(), method, client_device="cuda", clients=2, rounds=1, **options)
    assert [r.failures + r.rejected for r in done.strategy.records] == [0, 0]
    return list(seen)


@pytest.mark.flower
@pytest.mark.parametrize("micro_batch", ["all", "2"])
@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("method", ["ho_sfl", "heron", "decomfl"])
def test_a_client_waits_as_often_for_six_probes_as_for_two(
    method: str, estimator: str, micro_batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"estimator": estimator, "micro_batch": micro_batch}
    few, many = (count(method, monkeypatch, probes=p, **options) for p in (2, 6))
    assert few and few == many


@pytest.mark.flower
@pytest.mark.parametrize("law", LAWS)
def test_it_does_along_directions_of_every_law(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (count("ho_sfl", monkeypatch, direction=law, probes=p) for p in (2, 6))
    assert few and few == many


@pytest.mark.flower
@pytest.mark.parametrize(
    "options",
    [
        {"direction": "rank_one", "stack": 2},
        {"cone": 0.5, "client_optimizer": "momentum"},
        {"scalars": "channel"},
    ],
)
def test_it_does_in_every_form_of_probes(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (count("ho_sfl", monkeypatch, probes=p, **options) for p in (2, 6))
    assert few and few == many


def on_device() -> tuple[nn.Module, ParameterVector, Tensor]:
    half = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).to(SECOND)
    x = torch.linspace(-1, 1, 18).reshape(3, 6).to(SECOND)
    return half, ParameterVector(half), x


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_scalars_of_a_mini_batch_are_one_wait(law: str, estimator: str) -> None:
    probing = Probing(4, law, 1e-2, estimator)
    with second_device():
        half, vector, x = on_device()
        with torch.no_grad():
            z = half(x)
        us = vector.directions(RUN, law).of_step(1, 0, 1, 4)
        zero = torch.zeros((), dtype=torch.float64, device=SECOND)

        def sweep() -> Tensor:
            found = Sweep(vector, us, probing, zero)
            found.add(lambda total: total + half(x).square().mean().double())
            return found.scalars()

        ways: list[Callable[[], Tensor]] = [
            lambda: surrogate_scalars(lambda: half(x), vector, us, probing, z, z),
            lambda: loss_scalars(lambda: half(x).square().mean(), vector, us, probing),
        ]
        us[0].on(SECOND)  # radii of a sphere are read once, when the first direction is
        for way in [*ways, sweep] if Sweep.fits(probing) else ways:
            with waits() as seen:
                assert way().shape == (4,)
            assert seen == ["aten._to_copy.default"]


def test_the_radii_of_a_mini_batch_are_one_wait() -> None:
    with second_device():
        _, vector, _ = on_device()
        us = vector.directions(RUN, "sphere").of_step(1, 0, 1, 4)
        with waits() as seen:
            for u in us:
                u.on(SECOND)
        assert len(seen) == 1


def test_the_loss_of_texts_picks_no_rows_on_a_device() -> None:
    logits = torch.linspace(-2, 2, 40).reshape(2, 4, 5)
    y = torch.tensor([[1, IGNORED, 4, 0], [IGNORED, 2, IGNORED, 3]])
    with second_device():
        there, labels = logits.to(SECOND), y.to(SECOND)
        with waits() as seen:
            found = cross_entropy(there, labels)
        assert not seen
        value = found.cpu()
    torch.testing.assert_close(value, cross_entropy(logits, y))


def test_what_a_host_waits_for_is_seen() -> None:
    with second_device(), waits() as seen:
        there = torch.ones(3).to(SECOND)  # a copy that is waited for
        torch.ones(3).to(SECOND, non_blocking=True)
        float(there.sum())
        there.cpu()
        there[there > 0]
        torch.equal(there, there)
    names = ["_to_copy", "_local_scalar_dense", "_to_copy", "index", "equal"]
    assert [name.split(".")[1] for name in seen] == names
