"""Labels that are replaced at random: the same in all messages of a run, and by nobody's seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from sfl_flower import METHODS, RunConfig
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.methods import read_options
from sfl_flower.node.node import Node, join
from sfl_flower.task import Samples
from sfl_flower.wire import JoinRequest, Setup
from tests import tiny
from tests.local_grid import Fault, values
from tests.tiny import Trial, equal, train


def told(client: int = 1, **options: Any) -> tuple[Trial, dict[int, np.ndarray]]:
    """Return a run of the frozen client, and by round what a client says its labels are."""
    seen: dict[int, np.ndarray] = {}

    def look(content: RecordDict) -> RecordDict:
        seen[int(content["config"]["round"])] = values(content["arrays"]["y"])  # type: ignore[arg-type]
        return content

    faults = [Fault("change", {client}, types="forward", change=look)]
    every = {"batch_size": 12, "rounds": 4, **options}  # all samples of a client, each round
    return train(tiny.task(), "frozen", faults, **every), seen


def own(seen: dict[int, np.ndarray]) -> list[list[int]]:
    return [sorted(y.tolist()) for y in seen.values()]


def test_without_the_option_labels_are_the_clients_own() -> None:
    _, seen = told()
    y = tiny.task().samples("train").y[12:24]
    assert len(seen) == 4
    assert own(seen) == [sorted(y.tolist())] * 4


def test_every_message_of_a_run_tells_the_same_labels() -> None:
    _, seen = told(label_epsilon=0.5)
    assert len(seen) == 4
    assert all(each == own(seen)[0] for each in own(seen))


def test_two_runs_of_one_seed_tell_other_labels() -> None:
    runs = [told(label_epsilon=0.1) for _ in range(4)]
    assert any(own(seen)[0] != own(runs[0][1])[0] for _, seen in runs[1:])
    assert any(not equal(trial.model, runs[0][0].model) for trial, _ in runs[1:])


def test_with_a_large_epsilon_the_run_is_the_one_without() -> None:
    assert equal(told(label_epsilon=1e3)[0].model, told()[0].model)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_them(method: str) -> None:
    own: dict[str, Any] = (
        {"client_lr": 0.05} if method not in ("frozen", "mu_splitfed", "zo_sfl") else {}
    )
    plain, replaced = (
        train(tiny.task(), method, rounds=2, label_epsilon=epsilon, **own)
        for epsilon in (0.0, 1e-3)
    )
    assert not equal(plain.model, replaced.model)
    assert [record.rejected + record.failures for record in replaced.strategy.records] == [0] * 3


def node(config: dict[str, Any], epsilon: float) -> np.ndarray | None:
    task = tiny.task(clients=1, each=400)
    context = Context(1, 7, {"partition-id": 0, **config}, RecordDict(), {})
    setup = Setup(0, RunConfig(clients=1).partition_text(), label_epsilon=epsilon)
    return Node.open(lambda _: task, context, setup).told


def test_a_node_holds_to_its_own_epsilon_whatever_the_server_asks_for() -> None:
    y = tiny.task(clients=1, each=400).samples("train").y.numpy()
    assert node({}, 0.0) is None
    for own, asked in ((0.01, 0.0), (0.01, 1e3), (1e3, 0.01)):
        found = node({"label-epsilon": own}, asked)
        assert found is not None
        assert (found == y).mean() == pytest.approx(1 / 3, abs=0.1)  # of 3 classes
    with pytest.raises(ConfigError, match="label-epsilon 'none' in its node configuration"):
        node({"label-epsilon": "none"}, 0.0)


def test_a_server_that_asks_for_another_epsilon_later_is_told_nothing_new() -> None:
    task = tiny.task(clients=1, each=400)
    context = Context(1, 7, {"partition-id": 0, "label-epsilon": 1.0}, RecordDict(), {})
    partition = RunConfig(clients=1).partition_text()

    def told(epsilon: float) -> np.ndarray:
        found = Node.open(lambda _: task, context, Setup(0, partition, label_epsilon=epsilon)).told
        assert found is not None
        return found

    first = told(1e-6)
    assert all((told(epsilon) == first).all() for epsilon in (0.0, 1.0, 1e3))
    del context.node_config["label-epsilon"]  # it was told once, whoever stops asking
    assert (told(0.0) == first).all()


def test_labels_that_change_within_a_run_are_not_told_again() -> None:
    context = Context(1, 7, {"partition-id": 0}, RecordDict(), {})

    def open_with(shift: int) -> Node:
        own = tiny.samples(12)
        task = tiny.task([Samples(own.x, (own.y + shift) % tiny.CLASSES)], own=True)
        return Node.open(lambda _: task, context, Setup(0, "local", label_epsilon=1.0))

    open_with(0)
    with pytest.raises(DataError, match="labels are others than at the first message"):
        open_with(1)


def test_the_control_tells_as_little() -> None:
    _, _, settings, _ = read_options({"method": "ho_sfl", "label_epsilon": 2.0})
    assert settings.control["label_epsilon"] == 2.0
    assert any("label_epsilon=2" in warning for warning in settings.warnings())


def test_data_of_a_nodes_own_have_a_digest_that_tells_no_labels() -> None:
    def digest(shift: int, epsilon: float) -> str:
        own = tiny.samples(12)
        task = tiny.task([Samples(own.x, (own.y + shift) % tiny.CLASSES)], own=True)
        context = Context(1, 7, {"partition-id": 0}, RecordDict(), {})
        setup = Setup(0, "local", label_epsilon=epsilon)
        return join(lambda _: task, context, JoinRequest(setup)).data

    assert digest(0, 1.0) == digest(1, 1.0) == ""
    assert digest(0, 0.0) != digest(1, 0.0)
