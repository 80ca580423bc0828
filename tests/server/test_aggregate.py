"""How clients' scalars and weights are brought together, and what is refused before a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.server.aggregate import AGGREGATORS, find_aggregator
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, begin, start, train

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
    [
        ({"aggregator": "mode"}, r"Unknown aggregator 'mode'; legal are mean, median"),
        (
            {"aggregator": "median"},
            "aggregator=median compares .* set directions=shared or aggregator=mean",
        ),
        (
            {"aggregator": "median", "directions": "shared", "mean": "samples"},
            "aggregator=median counts every client the same, .* set mean=uniform",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_run(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options(options)
    with pytest.raises(ConfigError, match=says):
        begin(tiny.task(), **options)


# The median


def test_the_median_of_scalars_is_that_of_each_step_and_probe() -> None:
    median = find_aggregator("median")
    shares = np.array([0.5, 0.25, 0.25])
    assert median.scalars(SCALARS, shares).tolist() == [[2.0, 2.0]]
    assert median.scalars(SCALARS[:2], shares[:2]).tolist() == [[1.5 * 0.75, 2.0 * 0.75]]


def test_the_median_of_states_is_that_of_each_element_and_counter() -> None:
    median = find_aggregator("median")
    found = median.states(iter(STATES), [2.0, 1.0, 1.0])
    assert found["w"].tolist() == [2.0, 2.0] and found["w"].dtype == torch.float32
    assert found["batches"].item() == 4 and found["batches"].dtype == torch.int64
    two = median.states(STATES[1:], [1.0, 1.0])
    assert two["w"].tolist() == [5.5, -1.0] and two["batches"].item() == 6


EQUAL: dict[str, dict[str, Any]] = {
    "ho_sfl": {"directions": "shared", "minibatches": 2},
    "decomfl": {"local_steps": 2},
    "cse_fsl": {"local_steps": 2},
    "fsl_sage": {"local_steps": 2, "align_epochs": 2},
    "fsl_sage, warm": {"local_steps": 2, "align_epochs": 2, "warm_start": True},
    "splitfed_v1": {},
    "splitfed_v2": {},
    "fedavg": {},
}
DIRECTIONS_OF_THEIR_OWN: dict[str, dict[str, Any]] = {
    "heron": {"local_steps": 2, "probes": 2, "head_trainer": "client"},
    "mu_splitfed": {},
    "zo_sfl": {"local_steps": 2},
}


def of_three(method: str, aggregator: str, **options: Any) -> Trial:
    given: dict[str, Any] = {"clients": 3, "rounds": 2, "server_lr": 0.0, **options}
    trial = train(tiny.task([tiny.samples(1)] * 3), method, aggregator=aggregator, **given)
    assert trial.total("replies") == 6
    return trial


@pytest.mark.parametrize("name", EQUAL)
def test_the_median_of_three_equal_clients_is_their_mean(name: str) -> None:
    method = name.partition(",")[0]
    mean, median = (of_three(method, how, **EQUAL[name]) for how in ("mean", "median"))
    for key, value in mean.model.items():
        assert torch.allclose(value, median.model[key], rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize("method", DIRECTIONS_OF_THEIR_OWN)
def test_clients_that_walk_along_their_own_directions_meet_at_the_median(method: str) -> None:
    mean, median = (
        of_three(method, how, **DIRECTIONS_OF_THEIR_OWN[method]) for how in ("mean", "median")
    )
    assert not tiny.equal(mean.model, median.model)


def test_one_client_out_of_range_does_not_move_the_median_far() -> None:
    """HO-SFL, four clients: one claims a thousand times the scalars that it found."""

    def far(content: Any) -> RecordDict:
        if "scalars" not in content["arrays"]:
            return content  # type: ignore[no-any-return]
        return changed(content, arrays={"scalars": values(content["arrays"]["scalars"]) * 1e3})

    steps = {}
    for aggregator in ("mean", "median"):
        for faults in ((), (Fault("change", {3}, change=far),)):
            trial = begin(
                tiny.task(), "ho_sfl", faults, aggregator=aggregator, directions="shared",
                probes=4, rounds=1, server_lr=0.0, outlier_factor=0,
            )  # fmt: skip
            before = trial.model["first.weight"]
            after = start(trial).model["first.weight"]
            steps[aggregator, len(faults)] = float((after - before).norm())
    assert steps["mean", 1] > 100 * steps["mean", 0]
    assert steps["median", 1] < 3 * steps["median", 0]
