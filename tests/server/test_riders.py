"""Answers that cost nothing to make: named, and used all the same."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from sfl_flower.report.conduct import conduct, conduct_lines
from sfl_flower.server.riders import mark_scalars, mark_smashed
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import train

HONEST = ([0.1, -0.2, 0.3, 0.4], [-0.3, 0.1, 0.2, -0.5])


def marks(*each: Any, told: Sequence[np.ndarray] = ()) -> dict[str, set[int]]:
    tally = Tally()
    brought = {Member(k, 100 + k): np.array([v], np.float32) for k, v in enumerate(each)}
    mark_scalars(brought, tally, told)
    return tally.marks


def test_scalars_that_cost_nothing_are_named() -> None:
    assert marks(*HONEST) == {}
    assert marks(*HONEST, [0.0] * 4) == {"zero scalars": {2}}
    assert marks(*HONEST, [0.7] * 4) == {"constant scalars": {2}}
    assert marks(*HONEST, HONEST[1]) == {"copied scalars": {1, 2}}
    told = [np.array([[1.0, -1.0, 1.0, 1.0]]), np.array([[2.0, -4.0, 6.0, 8.0]])]
    assert marks(*HONEST, told=told) == {"repeated scalars": {0}}  # a twentieth of the second


def test_what_happens_to_honest_clients_is_not_named() -> None:
    assert marks([0.0] * 4, [0.0] * 4) == {}  # mu is too small for all
    assert marks([0.1], [0.1]) == marks([0.1] * 3, [0.2] * 3) == {}  # too few to tell
    assert marks([], []) == {}
    assert marks(*HONEST, told=[np.zeros((1, 4)), np.ones((2, 4))]) == {}


def test_copies_are_looked_for_among_those_alone_that_begin_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a thousand smashed data nobody is to hash all: equal first values come before."""
    hashed: list[int] = []

    def spy(data: Any, **how: Any) -> Any:
        hashed.append(memoryview(data).nbytes)
        return blake2b(data, **how)

    monkeypatch.setattr("sfl_flower.server.riders.blake2b", spy)
    rng = np.random.default_rng(0)
    tally, z = Tally(), rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
    late, turned = z[0].copy(), z[1].swapaxes(1, 2).copy().swapaxes(1, 2)  # the same in other order
    late[-1] += 1
    given = [*z, late, turned]
    mark_smashed({Member(k, k, 5): each for k, each in enumerate(given)}, tally)
    assert tally.marks == {"copied smashed data": {1, 7}}
    assert hashed == [z[0].nbytes] * 4  # clients 0 and 6, 1 and 7


def test_smashed_data_that_cost_nothing_are_named() -> None:
    rng = np.random.default_rng(0)
    honest, other = rng.standard_normal((2, 5, 3)).astype(np.float32)
    late = honest.copy()
    late[2:] += 1
    tally = Tally()
    given = [honest, other, np.full((5, 3), 2.0), np.zeros((5, 3)), other.copy(), late, honest[:1]]
    mark_smashed({Member(k, k, 5): z for k, z in enumerate(given)}, tally)
    assert tally.marks == {"constant smashed data": {2, 3}, "copied smashed data": {1, 4}}


def test_smashed_data_that_honest_clients_cannot_tell_apart_are_not_named() -> None:
    """Of a half that has died everybody sends the same, and one sample is the same each time."""
    rng = np.random.default_rng(0)
    dead, tally = np.full((4, 3), 0.5, np.float32), Tally()
    mark_smashed({Member(k, k, 9): dead.copy() for k in range(3)}, tally)
    mark_smashed({Member(0, 0, 1): dead, Member(1, 1, 9): rng.standard_normal((4, 3))}, tally)
    assert tally.marks == {}


def constant(name: str) -> Any:
    def change(content: Any) -> Any:
        old = content["arrays"].get(name)
        if old is None:
            return content
        return changed(content, arrays={name: np.full_like(values(old), 0.01)})

    return change


@pytest.mark.flower
@pytest.mark.parametrize(
    ("method", "name", "what"),
    [
        ("ho_sfl", "scalars", "constant scalars"),
        ("ho_sfl", "z", "constant smashed data"),
        ("heron", "scalars", "constant scalars"),
        ("heron", "z", "constant smashed data"),
        ("decomfl", "scalars", "constant scalars"),
    ],
)
def test_a_free_rider_stands_in_the_history_and_in_the_summary(
    method: str, name: str, what: str
) -> None:
    probes: dict[str, Any] = {"probes": 4} if method != "ho_sfl" else {}
    fault = Fault("change", {2}, {2, 3}, change=constant(name))
    result = tiny.run(tiny.task(), method, [fault], rounds=3, outlier_factor=0, **probes)
    named = [record.clients.get(what, ()) for record in result.history]
    assert named == [(), (), (2,), (2,)]
    assert result.summary.clients["2"][what] == 2
    assert [record.rejected for record in result.history] == [0] * 4


@pytest.mark.flower
def test_a_client_that_sends_back_what_was_told_is_named() -> None:
    """HO-SFL with shared directions, half of what round 1 brought: the journal says as much."""
    sent: list[np.ndarray] = []

    def keep(content: Any) -> Any:
        sent.append(values(content["arrays"]["scalars"]).copy())
        return content

    def again(content: Any) -> Any:
        return changed(content, arrays={"scalars": 0.5 * sent[0]})

    faults = [
        Fault("change", {0}, {1}, "probe", change=keep),
        Fault("change", {0}, {2}, "probe", change=again),
    ]
    trial = train(tiny.task(clients=1), "ho_sfl", faults, clients=1, directions="shared")
    named = [record.clients for record in trial.strategy.records]
    assert named == [{}, {}, {"repeated scalars": (0,)}, {}]


@pytest.mark.flower
@pytest.mark.parametrize("method", ["ho_sfl", "heron", "decomfl"])
def test_nothing_is_told_of_scalars_that_are_yet_to_be_noised_or_that_a_clip_makes_alike(
    method: str,
) -> None:
    """With one probe each sample brings C or -C; with noise equal scalars are a free rider's."""
    fault = Fault("change", {2}, {1, 2}, change=constant("scalars"))
    steps = {"minibatches": 4} if method == "ho_sfl" else {"local_steps": 4}
    own: dict[str, Any] = {"dp_clip": 1.0, "outlier_factor": 0.0, "probes": 1, **steps}
    clipped = train(tiny.task(), method, [fault], rounds=2, **own)
    assert [record.clients for record in clipped.strategy.records] == [{}] * 3
    several = train(tiny.task(), method, [fault], rounds=2, **{**own, "probes": 4})
    assert several.strategy.records[-1].clients["constant scalars"] == (2,)
    noised = train(tiny.task(), method, [fault], rounds=2, **own, dp_noise=1.0)
    assert noised.strategy.records[-1].clients["constant scalars"] == (2,)
    if method != "heron":
        own |= {"probes": 4, **dict.fromkeys(steps, 1)}
        central = train(
            tiny.task(), method, [fault], rounds=2, **own, dp_noise=1.0, dp_noise_by="server"
        )
        assert [record.clients for record in central.strategy.records] == [{}] * 3


@pytest.mark.flower
def test_honest_clients_are_not_named() -> None:
    for method in ("ho_sfl", "heron", "decomfl", "cse_fsl"):
        trial = train(tiny.task(), method, rounds=3)
        assert all(record.clients == {} for record in trial.strategy.records)
    robust: dict[str, Any] = {"aggregator": "krum:1", "clients": 5, "rounds": 10, "seed": 1}
    found = conduct(train(tiny.task(clients=5), "decomfl", **robust).strategy.records)
    assert {what for each in found.values() for what in each} == {"outlying"}  # in some rounds
    assert conduct_lines(found, 10) == []
