"""How clients' scalars and weights are brought together, and what is refused before a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.server.aggregate import AGGREGATORS, find_aggregator
from tests import tiny
from tests.tiny import begin

SCALARS = np.array([[[1.0, 8.0]], [[2.0, -4.0]], [[9.0, 2.0]]])  # three clients, one step
STATES = [
    {"w": torch.tensor([1.0, 8.0]), "batches": torch.tensor(3)},
    {"w": torch.tensor([2.0, -4.0]), "batches": torch.tensor(4)},
    {"w": torch.tensor([9.0, 2.0]), "batches": torch.tensor(8)},
]


def test_the_mean_of_scalars_is_their_sum_by_shares() -> None:
    found = find_aggregator("mean").scalars(SCALARS, np.array([0.5, 0.25, 0.25]))
    assert found.tolist() == [[3.25, 3.5]]


def test_the_mean_of_states_counts_clients_by_their_weights() -> None:
    found = find_aggregator("mean").states(iter(STATES), [2.0, 1.0, 1.0])
    assert found["w"].tolist() == [3.25, 3.5] and found["w"].dtype == torch.float32
    assert found["batches"].item() == 4 and found["batches"].dtype == torch.int64  # of 4.5


@pytest.mark.parametrize("name", AGGREGATORS)
def test_clients_that_agree_are_their_aggregate(name: str) -> None:
    aggregator = find_aggregator(name)
    same = np.stack([SCALARS[0]] * 3)
    assert aggregator.scalars(same, np.full(3, 0.5)).tolist() == [[1.5, 12.0]]
    found = aggregator.states([STATES[0]] * 3, [1.0] * 3)
    assert torch.equal(found["w"], STATES[0]["w"]) and found["batches"].item() == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [({"aggregator": "mode"}, r"Unknown aggregator 'mode'; legal are .*mean")],
)
def test_what_does_not_go_together_is_refused_before_a_run(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options(options)
    with pytest.raises(ConfigError, match=says):
        begin(tiny.task(), **options)
