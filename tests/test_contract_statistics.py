"""BatchNorm in train mode on clients: anchors move its running statistics, probes do not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from torch.func import functional_call

from sfl_flower.data import batch_indices, client_key
from sfl_flower.report import RunDirectory
from sfl_flower.task import SplitTask
from sfl_flower.zo import ParameterVector
from tests import tiny
from tests.local_grid import Fault, changed
from tests.strategies.test_ho_sfl import projected
from tests.tiny import Trial, begin, equal, start, train

STATISTICS = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
METHODS = pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
OPTIONS: dict[str, Any] = {"rounds": 4, "sampled": 3, "minibatches": 2, "server_steps": "batch"}


def problem(**options: Any) -> SplitTask:
    return tiny.task(build=tiny.with_batch_norm, **options)


@cache
def clean(method: str) -> Trial:
    return train(problem(), method, **OPTIONS)


def statistics(trial: Trial) -> dict[str, torch.Tensor]:
    return {name: trial.model[name].clone() for name in STATISTICS}


@METHODS
def test_they_are_the_mean_of_what_each_anchor_moves(method: str) -> None:
    task = problem()
    trial = begin(task, method, **{**OPTIONS, "rounds": 1, "sampled": 0})
    before, parameters = statistics(trial), dict(trial.strategy.client_half.named_parameters())
    parameters = {name: value.detach().clone() for name, value in parameters.items()}
    start(trial)
    means, variances = [], []
    for client, share in enumerate(task.shares):  # type: ignore[attr-defined]
        mean, variance = before[STATISTICS[0]], before[STATISTICS[1]]
        key = client_key(trial.strategy.config.seed, client)
        for step in range(2):
            x = share.x[batch_indices(key, 1, step, len(share), 4)]
            with torch.no_grad():
                h = x @ parameters["first.weight"].t() + parameters["first.bias"]
            mean, variance = 0.9 * mean + 0.1 * h.mean(0), 0.9 * variance + 0.1 * h.var(0)
        means.append(mean)
        variances.append(variance)
    found = statistics(trial)
    assert torch.allclose(found[STATISTICS[0]], torch.stack(means).mean(0), atol=1e-6)
    assert torch.allclose(found[STATISTICS[1]], torch.stack(variances).mean(0), atol=1e-6)
    assert int(found[STATISTICS[2]]) == int(before[STATISTICS[2]]) + 2


def test_probes_leave_them_alone_and_a_rate_of_0_is_the_control() -> None:
    still = {**OPTIONS, "client_lr": 0.0}
    few, many = (train(problem(), "ho_sfl", probes=probes, **still) for probes in (1, 5))
    assert equal(few.model, many.model) and equal(few.model, clean("frozen").model)
    moved = clean("ho_sfl")
    assert not torch.equal(moved.model["first.weight"], few.model["first.weight"])
    assert [record.failures + record.rejected for record in moved.strategy.records] == [0] * 5


def test_scalars_project_the_gradient_through_the_statistics_of_the_batch() -> None:
    halves, data = problem().build(3), tiny.samples(8, 5)
    half = halves.client.train()
    vector, lam = ParameterVector(half), torch.randn(8, tiny.CUT, generator=torch.Generator())
    names = dict(half.named_parameters())
    z = functional_call(half, {k: v.requires_grad_() for k, v in names.items()}, (data.x,))
    exact = torch.autograd.grad(z, [names[name] for name in vector.names], lam)
    expected = torch.cat([gradient.reshape(-1) for gradient in exact]).double()
    found = projected(half, data.x, lam, 1e-3, 0)
    assert float((found - expected).norm() / expected.norm()) < 1e-2


@METHODS
def test_a_stopped_run_goes_on_to_the_same_bits(method: str, tmp_path: Path) -> None:
    whole, resumed = tiny.stopped(problem, tmp_path, 2, method, **OPTIONS)
    assert equal(whole.model, resumed.model)
    losses = [record.loss for record in whole.history]
    assert [record.loss for record in RunDirectory(tmp_path / "parts").history] == losses


@METHODS
@pytest.mark.parametrize(
    "fault",
    [
        Fault("forget", {0, 2}, {1, 2, 3}, types="probe"),
        Fault("forget", {0, 2}, {1, 2, 3}, types="forward"),
        Fault("twice"),
    ],
    ids=["lost state", "lost anchor", "twice"],
)
def test_what_clients_lose_or_say_twice_changes_no_statistic(method: str, fault: Fault) -> None:
    trial = train(problem(), method, [fault], **OPTIONS)
    if fault.types == "forward" and method == "ho_sfl":  # the round's probes are lost with it
        assert [int(trial.model[STATISTICS[2]])] == [int(clean(method).model[STATISTICS[2]])]
    else:
        assert equal(trial.model, clean(method).model)
    trial = begin(problem(), method, **OPTIONS)
    trial.grid._rng.seed(5)
    assert equal(start(trial).model, clean(method).model)


@METHODS
def test_statistics_that_no_batch_has_are_refused(method: str) -> None:
    def negative(content: RecordDict) -> RecordDict:
        arrays = content.array_records["arrays"]
        name = next(name for name in arrays if name.startswith("statistics."))
        worst = torch.full((arrays[name].numpy().size,), -1.0).numpy()
        return changed(content, arrays={name: worst})

    def none(content: RecordDict) -> RecordDict:
        arrays = content.array_records["arrays"]
        gone = [name for name in arrays if name.startswith("statistics.")]
        for name in gone:
            del arrays[name]
        return content

    for bad in (negative, none):
        fault = Fault("change", {1}, {2}, types="forward", times=1, change=bad)
        trial = train(problem(), method, [fault], **{**OPTIONS, "sampled": 0})
        assert trial.total("rejected") == 1
        mute = Fault("mute", {1}, {2}, types="forward", times=1)
        lost = train(problem(), method, [mute], **{**OPTIONS, "sampled": 0})
        assert equal(trial.model, lost.model)


def test_in_eval_mode_none_moves_and_none_travels() -> None:
    trial = train(problem(), "ho_sfl", client_mode="eval", **OPTIONS)
    assert int(trial.model[STATISTICS[2]]) == 0
    for _, _, content in trial.grid.replies:
        arrays = content.array_records.get("arrays", {})
        assert not [name for name in arrays if name.startswith("statistics.")]
