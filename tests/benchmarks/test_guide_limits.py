"""Means over rounds are held against the gradient over all samples."""

from __future__ import annotations

import pytest
import torch

from benchmarks import guide_limits
from tests import tiny


def test_the_squared_cosine_by_hand() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])
    assert guide_limits.cosine_squared(one, other) == pytest.approx(0.36)


def test_where_public_samples_are_the_clients_own_both_means_are_the_gradient() -> None:
    """All 20 samples in every round, and among as many public ones each finds itself."""
    x = tiny.samples(20, 7)
    task = tiny.task([x], public=lambda: x)
    found = {
        figure.name: figure.value
        for figure in guide_limits.figures(task, len(x.x), rounds=2, public=len(x.x))
    }
    means = {f"{k}_{n}" for k in ("guide", "batch") for n in (1, 2)}
    within = {f"{k}_{n}" for k in ("own", "other") for n in ("gradient", "orthogonal")}
    assert set(found) == {f"cosine_squared_{name}" for name in means | within}
    assert min(found.values()) == pytest.approx(1.0, abs=1e-5)


def test_other_public_samples_tell_less() -> None:
    task = tiny.task([tiny.samples(20, 7)], public=lambda: tiny.samples(20, 8))
    found = {
        figure.name: figure.value for figure in guide_limits.figures(task, 20, rounds=1, public=20)
    }
    assert found["cosine_squared_guide_1"] < 0.99 < found["cosine_squared_batch_1"]
    assert found["cosine_squared_own_gradient"] == pytest.approx(found["cosine_squared_guide_1"])
