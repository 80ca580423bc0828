"""Robust aggregators on numbers that a person can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.server.aggregate import find_aggregator
from sfl_flower.server.robust import Robust
from sfl_flower.server.tally import Tally
from sfl_flower.server.verdict import Verdict, outlying, tell
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import train

FIVE = (0.0, 1.0, 2.0, 3.5, 100.0)


def together(name: str, numbers: Sequence[float]) -> tuple[float, Robust]:
    """Return what comes of a scalar a client, and the aggregator."""
    aggregator = find_aggregator(name)
    assert isinstance(aggregator, Robust)
    count = len(numbers)
    found = aggregator.scalars(np.array(numbers).reshape(count, 1, 1), np.full(count, 1 / count))
    assert found.shape == (1, 1)
    return float(found[0, 0]), aggregator


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("median", 2.0),
        ("trimmed:0.2", 6.5 / 3),  # of 1, 2 and 3.5
        ("trimmed:0.4", 2.0),
        ("trimmed:0.001", 6.5 / 3),  # one is left out at least
        # The squared distances to the two nearest: 1 + 4, 1 + 1, 1 + 2.25, 2.25 + 6.25, ...
        ("krum:1", 1.0),
        ("multikrum:1", 6.5 / 4),
        # Of the median 2 they are 2, 1, 0, 1.5 and 98 away; the radius is 1.5, or twice that.
        ("clip:1", (0.5 + 1 + 2 + 3.5 + 3.5) / 5),
        ("clip:2", (0 + 1 + 2 + 3.5 + 5) / 5),
        # The mean of the four nearest is that of all but 100, and for 100 that of all but 0.
        ("nnm:1+median", 6.5 / 4),
        ("nnm:1+trimmed:0.2", 6.5 / 4),
        ("nnm:1+krum:1", 6.5 / 4),
        ("nnm:2+median", 6.5 / 3),  # the means of three are 1, 1, 6.5 / 3, 6.5 / 3 and 105.5 / 3
    ],
)
def test_what_comes_of_five_clients(name: str, expected: float) -> None:
    assert together(name, FIVE)[0] == pytest.approx(expected, rel=1e-15)


def test_ties_go_to_the_first_client() -> None:
    assert together("krum:1", (7.0, 3.0, 3.0, 7.0, 5.0))[0] == 7.0  # 0 + 4, as 3; of 5 it is 4 + 4
    assert together("krum:1", (2.0, 2.0, 2.0, 1.0, 1.0, 1.0))[0] == pytest.approx(2.0)


def test_clients_are_judged_by_how_far_they_are_from_what_came_of_all() -> None:
    assert together("clip:1", FIVE)[1].verdict == Verdict(outlying=(4,), clipped=(0, 4))
    assert together("median", FIVE)[1].verdict == Verdict(outlying=(4,))
    assert together("median", (0.0, 1.0, 2.0))[1].verdict == Verdict()
    assert outlying(torch.tensor([1.0, 1e6]).double()) == ()
    assert outlying(torch.tensor([1.0, 1.0, 9.0]).double()) == ()
    assert outlying(torch.tensor([1.0, 1.0, 9.1]).double()) == (2,)


def test_few_answers_are_brought_together_by_their_median() -> None:
    value, aggregator = together("krum:1", FIVE[:4])
    assert value == 1.5
    assert aggregator.verdict is not None and "fewer than the 5" in aggregator.verdict.note
    assert together("nnm:2+median", FIVE[:4])[0] == 1.5
    assert together("trimmed:0.2", FIVE[:2])[0] == 0.5
    assert together("krum:1", FIVE[:1])[0] == 0.0


@pytest.mark.parametrize("name", ["median", "krum:1", "multikrum:1", "clip:1", "nnm:1+median"])
def test_weights_are_brought_together_as_scalars_are(name: str) -> None:
    """The same numbers in tensors of two shapes; counters count with their clients alone."""
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((6, 10))
    numbers[2] *= 50
    states = [
        {
            "a": torch.tensor(row[:6].reshape(2, 3)),
            "count": torch.tensor([10**9 * (k == 0)]),
            "b": torch.tensor(row[6:]),
        }
        for k, row in enumerate(numbers)
    ]
    scalars = find_aggregator(name).scalars(numbers.reshape(6, 2, 5), np.full(6, 1 / 6)).ravel()
    found = find_aggregator(name).states(states, [1.0] * 6)
    assert found["a"].shape == (2, 3) and found["count"].dtype == torch.int64
    both = torch.cat([found["a"].ravel(), found["b"]]).numpy()
    assert np.allclose(both, scalars, rtol=1e-12)


@pytest.mark.parametrize("name", ["median", "trimmed:0.2", "krum:1", "multikrum:1", "clip:1"])
@pytest.mark.parametrize("before", ["", "nnm:2+"])
def test_the_order_of_clients_and_what_all_share_do_not_matter(name: str, before: str) -> None:
    rng = np.random.default_rng(1)
    numbers, shares = rng.standard_normal((9, 3, 4)), np.full(9, 1 / 9)
    aggregator = find_aggregator(before + name)
    plain = aggregator.scalars(numbers, shares)
    assert np.allclose(aggregator.scalars(numbers[::-1].copy(), shares), plain, rtol=1e-12)
    moved = aggregator.scalars(numbers + 7.0, shares) - 7.0
    assert np.allclose(moved, plain, rtol=0, atol=1e-12)
    assert np.array_equal(aggregator.scalars(numbers, shares), plain)  # nothing is remembered


def test_two_clients_in_nine_cannot_move_what_comes_far_whatever_they_say() -> None:
    """Honest numbers are around 1; the liars' around anything."""
    rng = np.random.default_rng(2)
    honest = 1 + 0.1 * rng.standard_normal((7, 1, 16))
    for lie in (-1.0, 0.0, 5.0, -1e3, 1e30):
        numbers = np.concatenate([np.full((2, 1, 16), lie), honest])
        for name in ("median", "trimmed:0.23", "krum:2", "multikrum:2", "nnm:2+median", "clip:1"):
            found = find_aggregator(name).scalars(numbers, np.full(9, 1 / 9))
            assert np.abs(found - 1).max() < 0.35, (lie, name)


def test_each_client_alone_is_drawn_in_about_nothing() -> None:
    """Norms 1, 5 and 500: the radius is 5, or half of it."""
    numbers = np.array([[[1.0, 0.0]], [[3.0, 4.0]], [[300.0, 400.0]]])
    for factor, radius in ((1.0, 5.0), (0.5, 2.5)):
        aggregator = find_aggregator(f"clip:{factor:g}")
        found = aggregator.apart(numbers)
        assert np.allclose(np.linalg.norm(found[:, 0], axis=1), [1.0, radius, radius])
    assert isinstance(aggregator, Robust) and aggregator.verdict == Verdict((2,), (1, 2))
    assert not find_aggregator("clip:1").apart(np.zeros((3, 1, 2))).any()
    assert find_aggregator("mean").apart(numbers) is numbers


def test_a_round_is_told_of_the_clients_by_their_partitions() -> None:
    tally, (_, aggregator) = Tally(), together("clip:1", FIVE)
    tell(tally, aggregator, [3, 5, 8, 9, 11])
    assert tally.marks == {"outlying": {11}, "clipped": {3, 11}} and not tally.notes
    few = together("krum:1", FIVE[:4])[1]
    for _ in range(2):
        tell(tally, few, [3, 5, 8, 9])
    assert len(tally.notes) == 1
    tell(tally, find_aggregator("mean"), [])


@pytest.mark.parametrize("name", ["krum:1", "multikrum:1", "nnm:1+median", "clip:1"])
def test_clients_of_whom_there_is_nothing_to_measure_are_alike(name: str) -> None:
    """Counters go with their clients and count in no distance; here there is nothing else."""
    aggregator = find_aggregator(name)
    states = [{"counter": torch.tensor(3)} for _ in range(5)]
    assert aggregator.states(states, [1.0] * 5)["counter"] == 3


@pytest.mark.flower
def test_a_round_is_told_of_running_statistics_that_are_far_from_all() -> None:
    def far(content: Any) -> Any:
        old = content["arrays"].get("statistics.float32")
        if old is None:
            return content
        return changed(content, arrays={"statistics.float32": values(old) + np.float32(1e3)})

    fault = Fault("change", {2}, {2}, change=far)
    problem = tiny.task(build=tiny.with_batch_norm)
    trial = train(problem, "frozen", [fault], aggregator="median", rounds=2)
    assert trial.strategy.records[2].clients == {"outlying": (2,)}
