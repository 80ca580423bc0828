"""What a process can run at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.node.node import Node, join
from sfl_flower.run import simulation
from sfl_flower.run.run import Plan, RunResult
from sfl_flower.run.simulation import simulate
from sfl_flower.wire import JoinRequest, Setup
from tests import tiny

pytestmark = pytest.mark.flower

OPTIONS: dict[str, Any] = {
    "backend": "inline", "clients": 2, "rounds": 1, "batch_size": 4, "partition": "iid",
}  # fmt: skip


def test_e12_a_second_run_in_another_thread_is_refused_and_the_first_goes_on() -> None:
    errors: list[BaseException] = []

    def second() -> None:
        try:
            simulate(tiny.task(clients=2), **OPTIONS)
        except BaseException as error:
            errors.append(error)

    def meanwhile(record: Any) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    first = simulate(tiny.task(clients=2), on_round=meanwhile, **OPTIONS)
    assert [type(error) for error in errors] == [ConfigError] * 2
    assert "Another simulation is running in a thread of this process" in str(errors[0])
    alone = simulate(tiny.task(clients=2), **OPTIONS)
    assert tiny.equal(first.model, alone.model)


def test_e12_a_run_that_failed_leaves_the_way_free() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot give each of 9 clients"):
            simulate(tiny.task(clients=2, each=4), **{**OPTIONS, "clients": 9})
    assert simulate(tiny.task(clients=2), **OPTIONS).history


def test_too_long_an_upload_period_for_the_smallest_share_is_refused_before_anything_starts() -> (
    None
):
    options = {**OPTIONS, "local_steps": 0, "upload_every": 3}
    with pytest.raises(ConfigError, match=r"upload_every is 3, .* must be in \[1, 2\]"):
        simulate(tiny.task(clients=2, each=8), "cse_fsl", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"server_device": "cuda"}, "server_device is cuda, but torch .* sees no GPU"),
        ({"client_device": "cuda"}, "client_device is cuda, but torch .* sees no GPU"),
        ({"client_gpus": 0.5}, "client_gpus is 0.5 with client_device 'cpu'.*must be 0"),
        ({"client_device": "tpu"}, "client_device .*cpu, auto, cuda"),
        (
            {"client_device": "auto", "client_gpus": 0.5, "backend": "ray"},
            "client_gpus is 0.5, but torch .* sees no GPU .*; it must be 0, and client_device cpu",
        ),
        (
            {"client_device": "cuda", "backend": "ray"},
            "client_gpus 0, which keeps Ray's workers off the GPU",
        ),
    ],
)
def test_a4_a_device_that_is_not_there_is_refused_before_anything_starts(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("flwr.simulation.run_simulation", None)
    with pytest.raises(ConfigError, match=said):
        simulate(tiny.task(clients=2), **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("options", "device", "gpus"),
    [
        ({"client_device": "auto", "client_gpus": 0.25}, "auto", 0.25),
        ({"client_device": "auto"}, "cpu", 0),
        ({}, "cpu", 0),
    ],
)
def test_a4_rays_workers_get_the_share_of_a_gpu_that_is_asked_for(
    options: dict[str, Any], device: str, gpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run_simulation(*apps: Any, backend_config: dict[str, Any], **more: Any) -> None:
        seen.append(backend_config["client_resources"]["num_gpus"])
        raise RuntimeError("Enough.")

    def watched(app: Any, task: Any, plan: Plan, *more: Any) -> RunResult:
        seen.append(plan.config.client_device)
        return on_ray(app, task, plan, *more)

    on_ray = simulation._on_ray
    monkeypatch.setattr(simulation, "_on_ray", watched)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation)
    with pytest.raises(TrainingError, match="Enough"):
        simulate(tiny.task(clients=2), **{**OPTIONS, "backend": "ray", **options})
    assert seen == [device, gpus]


def test_a4_a_node_configuration_goes_before_the_device_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    task, setup = tiny.task(clients=2), Setup(0, RunConfig(clients=2).partition_text())
    divided: dict[str, Any] = {"partition-id": 0, "client-device": "cuda"}
    context = Context(1, 1, divided, RecordDict(), {})
    reply = join(lambda context: task, context, JoinRequest(setup))
    assert "client-device of the node configuration is cuda" in reply.problem
    context.node_config["client-device"] = "auto"
    assert Node.open(lambda context: task, context, setup).device.type == "cpu"


@pytest.mark.parametrize("since", [0, 2])
def test_a_node_that_is_told_to_use_a_gpu_that_it_lacks_is_left_out_and_counted(
    since: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start it cannot join; where it loses the GPU later its replies are missing."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trial = tiny.begin(tiny.task(clients=3), clients=3, rounds=3)
    config = trial.grid.contexts[trial.grid.nodes[1]].node_config

    def observe(record: Any) -> None:
        if record.round + 1 == since:
            config["client-device"] = "cuda"

    if not since:
        config["client-device"] = "cuda"
    trial.strategy.account._on_round = observe
    tiny.start(trial)
    assert "client-device of the node configuration is cuda, but torch" in trial.notes
    assert "sees no GPU in this process; it must be cpu, or auto" in trial.notes
    assert trial.total("failures") == (2 if since else 0)
    assert [record.replies for record in trial.strategy.records[1:]] == COUNTED[since]


COUNTED = {0: [2, 2, 2], 2: [3, 2, 2]}
"""Clients whose replies a round used."""
