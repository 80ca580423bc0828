"""How clients' scalars and weights are brought together, and what is refused before a run."""

from __future__ import annotations

import re
from pathlib import Path
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


NAMES = (
    "mean", "median", "trimmed:0.2", "krum:1", "multikrum:1", "clip:1", "nnm:1+median",
    "nnm:1+trimmed:0.2", "nnm:1+krum:1", "nnm:1+clip:1",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_clients_that_agree_are_their_aggregate(name: str) -> None:
    aggregator = find_aggregator(name)
    same = np.stack([SCALARS[0]] * 6)
    assert aggregator.scalars(same, np.full(6, 0.25)).tolist() == [[1.5, 12.0]]
    found = aggregator.states([STATES[0]] * 6, [1.0] * 6)
    assert torch.equal(found["w"], STATES[0]["w"]) and found["batches"].item() == 3


def test_every_aggregator_is_tried() -> None:
    assert {name.split("+")[-1].partition(":")[0] for name in NAMES} == set(AGGREGATORS)


@pytest.mark.parametrize(
    "name",
    [
        "mode", "", "mean:1", "median:1", "trimmed", "trimmed:0", "trimmed:0.5", "krum", "krum:0",
        "krum:1.5", "krum:-1", "multikrum:x", "clip", "clip:0.01", "clip:1000", "clip:nan",
        "nnm:2", "nnm:0+median", "nnm:1+mean", "median+nnm:1", "nnm:1+nnm:1+median",
        "krum:" + "9" * 99,
    ],
)  # fmt: skip
def test_a_name_of_no_aggregator_is_refused_with_what_it_must_be(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^aggregator is '.*'; it must be mean, median, trimmed:S"
    ):
        find_aggregator(name)


@pytest.mark.parametrize(
    ("name", "clients", "fewest"),
    [("krum:1", 4, 5), ("multikrum:2", 6, 7), ("trimmed:0.2", 2, 3), ("nnm:2+median", 4, 5)],
)
def test_too_few_clients_are_refused_before_a_run(name: str, clients: int, fewest: int) -> None:
    given: dict[str, Any] = {"directions": "shared", "aggregator": name}
    says = (
        f"aggregator={re.escape(name)} needs at least {fewest} clients in a round, .* has {clients}"
    )
    with pytest.raises(ConfigError, match=says):
        read_options({**given, "clients": clients})
    with pytest.raises(ConfigError, match=says):
        read_options({**given, "clients": 50, "sampled": clients})
    read_options({**given, "clients": fewest})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"aggregator": "mode"}, "aggregator is 'mode'; it must be mean, median"),
        (
            {"aggregator": "median"},
            "aggregator=median compares .* set directions=shared, or aggregator=mean or clip:C",
        ),
        (
            {"aggregator": "median", "directions": "shared", "server_batch": 64},
            "server_batch is 64 with aggregator=median, which compares .* leave server_batch 0",
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
    if "server_batch" not in options:  # of which methods without one know nothing
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


def far(name: str, factor: float) -> Any:
    """Return what multiplies an array of a message."""

    def change(content: Any) -> RecordDict:
        if name not in content["arrays"]:
            return content  # type: ignore[no-any-return]
        return changed(content, arrays={name: values(content["arrays"][name]) * np.float32(factor)})

    return change


BOUNDED = ("median", "trimmed:0.2", "krum:1", "multikrum:1", "clip:1", "nnm:1+median")
ONE_STEP: dict[str, dict[str, Any]] = {
    "ho_sfl": {"directions": "shared", "probes": 4, "server_lr": 0.0},
    "decomfl": {"probes": 4, "client_lr": 0.02},
    "heron": {"probes": 4, "server_lr": 0.0, "head_lr": 0.0, **tiny.STEADY["heron"]},
}


@pytest.mark.parametrize("method", ONE_STEP)
def test_one_client_out_of_range_does_not_move_a_robust_aggregate_far(method: str) -> None:
    """Five clients: one claims a thousand times the scalars that it found."""
    liar = Fault("change", {3}, change=far("scalars", 1e3))
    steps = {}
    for aggregator in ("mean", *BOUNDED):
        for faults in ((), (liar,)):
            trial = begin(
                tiny.task(clients=5), method, faults, clients=5, aggregator=aggregator, rounds=1,
                outlier_factor=0, **ONE_STEP[method],
            )  # fmt: skip
            before = trial.model["first.weight"]
            after = start(trial).model["first.weight"]
            steps[aggregator, len(faults)] = float((after - before).norm())
            if faults and aggregator != "mean":
                assert 3 in trial.strategy.records[1].clients["outlying"]
                clipped = trial.strategy.records[1].clients.get("clipped", ())
                assert (3 in clipped) == (aggregator == "clip:1")
    assert steps["mean", 1] > 100 * steps["mean", 0]
    for aggregator in BOUNDED:
        assert steps[aggregator, 1] < 3 * steps[aggregator, 0]


def test_a_client_alone_is_clipped_where_directions_are_own() -> None:
    liar = Fault("change", {3}, change=far("scalars", 1e3))
    steps = {}
    for aggregator in ("mean", "clip:1"):
        trial = begin(
            tiny.task(), "ho_sfl", [liar], aggregator=aggregator, rounds=1, outlier_factor=0
        )
        before = trial.model["first.weight"]
        steps[aggregator] = float((start(trial).model["first.weight"] - before).norm())
    assert steps["clip:1"] < steps["mean"] / 50
    assert 3 in trial.strategy.records[1].clients["clipped"]


@pytest.mark.parametrize("aggregator", ["median", "multikrum:1", "nnm:1+trimmed:0.2"])
def test_the_server_half_steps_by_the_aggregate_of_the_clients_gradients(aggregator: str) -> None:
    """One step a round: smashed data of one client in five are 1000 times too large."""
    liar = Fault("change", {3}, change=far("z", 1e3))
    steps = {}
    for how in ("mean", aggregator):
        for faults in ((), (liar,)):
            trial = begin(
                tiny.task(clients=5), "frozen", faults, clients=5, aggregator=how, rounds=1,
                outlier_factor=0, minibatches=2,
            )  # fmt: skip
            before = trial.model["hidden.weight"]
            after = start(trial).model["hidden.weight"]
            steps[how, len(faults)] = float((after - before).norm())
    assert steps["mean", 1] > 10 * steps["mean", 0]
    assert 0 < steps[aggregator, 1] < 3 * steps[aggregator, 0]


def test_the_server_half_of_equal_clients_steps_as_by_the_mean() -> None:
    """Two mini-batches a client, whose gradients are added before they are compared."""
    runs = [
        train(
            tiny.task([tiny.samples(8)] * 3), "frozen", clients=3, rounds=2, minibatches=2,
            batch_size=8, aggregator=how,
        )
        for how in ("mean", "median")
    ]  # fmt: skip
    for key, value in runs[0].model.items():
        assert torch.allclose(value, runs[1].model[key], rtol=1e-6, atol=1e-7), key


ROBUST_RUNS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"directions": "shared", "minibatches": 2, "client_optimizer": "adam"},
    "heron": {"local_steps": 2, "probes": 4},
    "decomfl": {"local_steps": 2},
}


@pytest.mark.parametrize("method", ROBUST_RUNS)
@pytest.mark.parametrize("aggregator", ["multikrum:1", "nnm:1+clip:1"])
def test_robust_runs_have_the_same_bits_in_any_order_and_after_a_resume(
    method: str, aggregator: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"clients": 5, "aggregator": aggregator, **ROBUST_RUNS[method]}
    given |= tiny.STEADY.get(method, {})
    plain = train(tiny.task(clients=5), method, rounds=3, **given)
    other = begin(tiny.task(clients=5), method, [Fault("twice")], rounds=3, **given)
    other.grid._rng.seed(99)
    assert tiny.equal(plain.model, start(other).model)
    tiny.run(tiny.task(clients=5), method, out=tmp_path, rounds=2, **given)
    resumed = tiny.run(tiny.task(clients=5), method, out=tmp_path, resume=True, rounds=3, **given)
    assert tiny.equal(plain.model, resumed.model)
    assert [r.clients for r in resumed.history] == [r.clients for r in plain.strategy.records]
    journal = plain.strategy.journal
    if journal is not None:  # what a client replays is what was aggregated
        assert [len(entry.streams) for entry in journal.entries] == [1, 1, 1]
        assert plain.theta(0).tobytes() == other.theta(0).tobytes()


def test_a_round_with_too_few_answers_takes_the_median_and_says_so() -> None:
    """Krum needs five; of four answers it is the coordinate median, to the bit."""
    given: dict[str, Any] = {"clients": 5, "rounds": 2, "directions": "shared", "server_lr": 0.0}
    missing = [Fault("raise", {4}, {1}, "probe")]
    runs = [
        train(tiny.task(clients=5), "ho_sfl", missing, aggregator=how, **{**given, "rounds": 1})
        for how in ("krum:1", "median")
    ]
    assert tiny.equal(runs[0].model, runs[1].model)
    says = "4 answers are fewer than the 5 that the run's aggregator needs: their coordinate median"
    assert says in runs[0].notes and says not in runs[1].notes
