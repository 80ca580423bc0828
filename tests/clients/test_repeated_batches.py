"""A client meets a mini-batch of a round twice; it must be the same both times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfl_flower.errors import TrainingError
from tests import tiny
from tests.tiny import begin, start, train

TWICE = ("ho_sfl", "splitfed_v1", "splitfed_v2")


def _noise(x: Tensor) -> Tensor:
    return x + 0.5 * torch.randn(x.shape)


@pytest.mark.parametrize("method", TWICE)
def test_e1_a_batch_that_differs_between_two_messages_is_refused_with_the_reason(
    method: str,
) -> None:
    own = np.random.default_rng(3)
    task = tiny.task(transform=lambda x: x + float(own.random()))
    trial = begin(task, method, rounds=1)
    with pytest.raises(TrainingError, match="No usable reply in any of the 1 rounds") as raised:
        start(trial)
    assert "another mini-batch than it had before in round 1" in str(raised.value)
    assert "augment=" in str(raised.value)


@pytest.mark.parametrize("method", TWICE)
def test_e1_what_a_transform_or_augmentation_draws_is_drawn_again(method: str) -> None:
    for name in ("transform", "augment"):
        changes: Any = {name: _noise}
        trial = train(tiny.task(**changes), method, rounds=2)
        assert trial.total("failures") + trial.total("rejected") == 0
        assert trial.notes == ""


def test_e1_scalars_of_augmented_batches_are_as_small_as_those_of_plain_ones() -> None:
    def rms(**changes: Any) -> float:
        trial = train(tiny.task(**changes), "ho_sfl", rounds=1, mu=1e-3)
        return float(trial.strategy.records[-1].extra["scalar_rms"])

    # Between two draws z moves by far more than a probe moves it.
    assert rms(augment=_noise) < 5 * rms()


def test_e1_every_method_sees_the_same_augmented_batches() -> None:
    seen: dict[str, list[bytes]] = {}
    for method in ("frozen", "splitfed_v2", "fedavg"):
        found = seen.setdefault(method, [])

        def spy(x: Tensor, found: list[bytes] = found) -> Tensor:
            moved = _noise(x)
            found.append(moved.numpy().tobytes())
            return moved

        train(tiny.task(augment=spy), method, rounds=1)
    assert set(seen["frozen"]) & set(seen["splitfed_v2"]) & set(seen["fedavg"])
