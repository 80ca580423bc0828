"""Operations of an update, by hand: 2 of each product of a weight and an input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfl_flower.profiling.operations import Operations, operations
from sfl_flower.split import cut, restrict
from sfl_flower.zo import Probing

X = torch.randn(3, 6)


def half(trained: str, outputs: int = 4) -> nn.Module:
    """Return 6 -> 5 -> tanh -> outputs, restricted."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs), nn.Linear(outputs, 2))
    client = cut(model, "2").client
    restrict(client, trained)
    return client


@pytest.mark.parametrize(
    ("trained", "estimator", "probe"),
    [
        ("all", "forward", 100),
        ("2.*", "forward", 40),
        ("2.*", "central", 2 * 40),
        ("2.*", "jvp", 3 * 100),  # it runs the whole half
    ],
)
def test_a_probe_runs_what_it_moves(trained: str, estimator: str, probe: float) -> None:
    found = operations(half(trained), X, Probing(1, estimator=estimator))
    assert found == Operations(anchor=100, probe=probe)


def test_what_a_client_does_not_keep_runs_again() -> None:
    """Five numbers cross where z has one, more than four times as many bytes."""
    assert operations(half("2.*", 1), X, Probing(1)) == Operations(70 + 60, 10)
    assert operations(half("2.*", 2), X, Probing(1)) == Operations(80, 20)


def test_what_has_no_products_is_not_free() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    client = cut(model, "1").client
    restrict(client, "norm")
    assert operations(client, X, Probing(1)) == Operations(60, 0.6)
