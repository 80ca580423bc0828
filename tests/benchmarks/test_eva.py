"""What spans share, and names of weights beside adapters."""

from __future__ import annotations

import pytest
import torch

from benchmarks.eva import adapted, overlap


def test_overlap_by_hand() -> None:
    """The first layer shares one direction of two, the second lies at 60° to its like."""
    axes = torch.eye(3, dtype=torch.float64)
    ones = {"a": axes[:, :2], "b": axes[:, :1]}
    tilted = torch.tensor([[0.5], [0.75**0.5], [0.0]], dtype=torch.float64)
    others = {"a": axes[:, 1:], "b": tilted}
    assert overlap(ones, others) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert overlap(ones, ones) == pytest.approx(1)


def test_weights_of_layers_with_adapters_have_the_names_of_their_base() -> None:
    gradient = {name: torch.zeros(1) for name in ("q.weight", "q.bias", "k.weight")}
    assert adapted(gradient, ["q"]).keys() == {
        "q.base_layer.weight", "q.base_layer.bias", "k.weight"
    }  # fmt: skip
