"""Several passes of the server half over the smashed data of a round."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sfl_flower import SplitTask, compare
from sfl_flower.data import model_seed
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.methods import read_options
from sfl_flower.server.roster import Member
from sfl_flower.server.trainer import Trainer
from sfl_flower.server.turns import turns
from tests import tiny
from tests.local_grid import values
from tests.tiny import Trial, equal, train

BATCH: dict[str, Any] = {"server_steps": "batch", "minibatches": 2}
MEMBERS = [Member(partition, 0) for partition in range(4)]
Draw = tuple[int, int, int]


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[Draw]:
    """Note round, partition and number of each mini-batch that a server half meets."""
    seen: list[Draw] = []
    plain = Trainer.gradients

    def gradients(half: Trainer, z: np.ndarray, y: np.ndarray, draw: Draw) -> Any:
        seen.append(draw)
        return plain(half, z, y, draw)

    monkeypatch.setattr(Trainer, "gradients", gradients)
    return seen


def steps(trial: Trial) -> list[float]:
    return [record.extra["server_steps"] for record in trial.strategy.records[1:]]


@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
def test_each_pass_takes_as_many_steps_in_an_order_of_its_own(method: str, met: list[Draw]) -> None:
    """Four clients with two mini-batches each are 8 steps a pass."""
    trial = train(tiny.task(), method, rounds=2, server_passes=3, **BATCH)
    assert steps(trial) == [24, 24]
    orders = [
        [member.partition for member in turns(0, round, MEMBERS, again)]
        for round in (1, 2)
        for again in range(3)
    ]
    assert len(set(map(tuple, orders))) == 6
    # A number of its own in each pass, so that dropout has masks of its own.
    assert met == [
        (1 + place // 3, client, 2 * (place % 3) + step)
        for place, order in enumerate(orders)
        for client in order
        for step in (0, 1)
    ]
    once = train(tiny.task(), method, rounds=2, **BATCH)
    assert steps(once) == [8, 8] and not equal(once.model, trial.model)
    assert equal(once.model, train(tiny.task(), method, rounds=2, server_passes=1, **BATCH).model)


def test_the_server_half_by_hand() -> None:
    """One client, two mini-batches, two passes of plain SGD: first, second, first, second."""
    problem = tiny.task([tiny.samples(8)])
    options: dict[str, Any] = {"clients": 1, "rounds": 1, "server_lr": 0.2, "server_passes": 2}
    trial = train(problem, "frozen", **BATCH, **options)
    (reply,) = (c for kind, _, c in trial.grid.replies if kind == "forward")
    z, y = (torch.from_numpy(values(reply["arrays"][name]).copy()) for name in ("z", "y"))
    y = y.long()  # they travel as the smallest integers that hold them
    twin = problem.build(model_seed(0)).server
    sgd = torch.optim.SGD(twin.parameters(), lr=0.2)
    for part in (slice(0, 4), slice(4, 8), slice(0, 4), slice(4, 8)):
        sgd.zero_grad()
        cross_entropy(twin(z[part]), y[part]).backward()
        sgd.step()
    for name, value in twin.state_dict().items():
        assert torch.allclose(trial.model[name], value, rtol=0, atol=1e-6), name


def test_lambda_is_of_the_first_pass() -> None:
    """In the first round it is the same to the bit, however many passes follow."""
    sent = []
    for passes in (1, 3):
        trial = train(tiny.task(), rounds=1, server_passes=passes, **BATCH)
        sent.append({
            client: values(content["arrays"]["lam"]).tobytes()
            for kind, client, content in trial.grid.requests
            if kind == "probe"
        })  # fmt: skip
        losses = [record.loss for record in trial.strategy.records]
        sent[-1][-1] = repr(losses[1]).encode()  # as is the loss that a round reports
    assert sent[0] == sent[1] and len(sent[0]) == 5


def dropout() -> nn.Module:
    """Return a model with dropout and BatchNorm in the server half alone."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            act=nn.Tanh(),
            drop=nn.Dropout(0.5),
            norm2=nn.BatchNorm1d(tiny.CUT),
            out=nn.Linear(tiny.CUT, tiny.CLASSES),
        )
    )


@pytest.mark.parametrize("build", [tiny.model, tiny.with_batch_norm, dropout])
def test_the_frozen_client_is_ho_sfl_at_a_client_rate_of_0(build: Any) -> None:
    options = {**BATCH, "rounds": 3, "sampled": 3, "server_momentum": 0.9, "server_passes": 2}
    ours = train(tiny.task(build=build), "ho_sfl", client_lr=0.0, **options)
    assert equal(ours.model, train(tiny.task(build=build), "frozen", **options).model)


def test_what_a_later_pass_cannot_use_is_left_out_of_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second mini-batch of client 1 fails in the second pass; its first goes back too."""
    plain, taken = Trainer.gradients, list[Draw]()

    def gradients(half: Trainer, z: np.ndarray, y: np.ndarray, draw: Draw) -> Any:
        if draw == (1, 1, 3):
            raise WireError("its loss is not finite.")
        taken.append(draw)
        return plain(half, z, y, draw)

    monkeypatch.setattr(Trainer, "gradients", gradients)
    options: dict[str, Any] = {**BATCH, "rounds": 1, "server_passes": 2}
    trial = train(tiny.task(), "ho_sfl", **options)
    assert steps(trial) == [8 + 6]
    assert "Pass 2 leaves client 1 out: its loss is not finite." in trial.notes
    assert trial.total("rejected") == 0 and trial.total("replies") == 4
    monkeypatch.setattr(Trainer, "gradients", plain)

    def without_1(*given: Any) -> list[Member]:
        order = turns(*given)
        return [member for member in order if member.partition != 1] if given[3:] else order

    monkeypatch.setattr("sfl_flower.server.turns.turns", without_1)
    without = train(tiny.task(), "ho_sfl", **options)
    assert equal(trial.model, without.model)


def test_a_step_a_round_has_one_pass() -> None:
    says = r"server_passes is 2 with server_steps=round: .*use server_steps=batch, or server_passes"
    for method in ("ho_sfl", "frozen"):
        with pytest.raises(ConfigError, match=says):
            read_options({"method": method, "server_steps": "round", "server_passes": 2})
        with pytest.raises(ConfigError, match="server_passes is 0"):
            read_options({"method": method, "server_passes": 0})


def test_a_comparison_has_a_control_with_as_many_passes(tmp_path: Path) -> None:
    methods = {"ho_sfl": {"server_passes": 2}}
    shared: dict[str, Any] = {
        "clients": 2, "batch_size": 4, "partition": "iid", "join_timeout": 0.2, "validation": 0.0,
    }  # fmt: skip
    x = tiny.samples(24)
    task = SplitTask(
        "tiny", tiny.model, "act", lambda: x, lambda: tiny.samples(40, 1), classes=tiny.CLASSES
    )
    found = compare(task, methods, samples=24, seeds=1, out=tmp_path, **shared)
    labels = [f"frozen (server_steps=batch, server_passes={passes})" for passes in (1, 2)]
    taken = {row.label: row.term("server_steps") for row in found.rows}
    assert taken == {labels[0]: 6, labels[1]: 12, "ho_sfl": 12, "splitfed_v2": 6}
    assert "server passes: 2, not 1" in found["ho_sfl"].apart
    assert "| ho_sfl † | 0.05 | 1 | 12 | batch, 2 passes |" in (tmp_path / "table.md").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "frozen-batch-2passes").is_dir()
    with pytest.raises(ConfigError, match="server_passes of frozen follows from the methods"):
        given = {**methods, "frozen": {"server-passes": 3}}
        compare(task, given, samples=24, seeds=1, out=tmp_path / "b", **shared)
