"""`simulate`: Ray gives what the inline backend gives, and failures come out as they are."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from sfl_flower import simulate
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.methods import METHODS as KNOWN
from sfl_flower.report import RoundRecord
from sfl_flower.run import simulation
from sfl_flower.run.inline import InlineGrid
from sfl_flower.run.run import Plan, RunResult, execute
from sfl_flower.task import SplitTask
from sfl_flower.wire.flower import SUPERLINK, identity
from tests import tiny

SHARED: dict[str, Any] = {"rounds": 3, "clients": 4, "sampled": 2, "batch_size": 8, "seed": 3}
METHODS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"micro_batch": 3, "minibatches": 2, "client_optimizer": "momentum"},
    "frozen": {},
    "splitfed_v2": {"micro_batch": 3, "local_steps": 2},
    "splitfed_v1": {"client_optimizer": "adam", "client_lr": 0.01},
    "heron": {
        "micro_batch": 3,
        "local_steps": 2,
        "probes": 2,
        "client_optimizer": "adam",
        "client_lr": 0.01,
    },
    "cse_fsl": {"micro_batch": 3, "local_steps": 3, "upload_every": 2},
    "fsl_sage": {
        "micro_batch": 3,
        "local_steps": 2,
        "align_every": 2,
        "align_epochs": 2,
        "buffer": 16,
    },
    "fedavg": {"micro_batch": 3, "local_steps": 2},
    "decomfl": {"micro_batch": 3, "local_steps": 2, "probes": 2},
    "mu_splitfed": {},
    "zo_sfl": {"client_optimizer": "adamw", "client_lr": 0.001, "server_lr": 1e-4},
    "ho_sfl spread": {"probes": 3, "scale": "spread", "client_optimizer": "radazo"},
    "ho_sfl guide": {"probes": 2, "guide": "noise", "guide_rest": 0.5},
    "heron guide": {"local_steps": 2, "probes": 2, "guide": "noise", "guide_rest": 0.5},
    "heron spread": {"local_steps": 2, "probes": 3, "scale": "spread"},
    "ho_sfl stack": {"direction": "rank_one", "probes": 4, "stack": 3},
    "heron stack": {"local_steps": 2, "direction": "rank_one", "probes": 2, "stack": 2},
    "ho_sfl channel": {"probes": 2, "scalars": "channel", "client_optimizer": "momentum"},
    "ho_sfl passes": {"probes": 2, "minibatches": 2, "server_passes": 2},
    "frozen passes": {"minibatches": 2, "server_passes": 3},
    "ho_sfl walk": {"probes": 2, "walk": True},
    "ho_sfl secure": {"directions": "shared", "secure_sums": True, "sampled": 3},
    "heron walk": {"local_steps": 2, "probes": 2, "walk": True},
    "ho_sfl hiso": {"client_optimizer": "hiso", "cone": 0.5},
    "heron radazo": {
        "local_steps": 3,
        "probes": 2,
        "client_optimizer": "radazo",
        "cone": 0.5,
        "client_lr": 0.01,
    },
    "u_shaped": {"probes": 2, "tail_order": "zeroth", "tail_probes": 4, "client_lr": 0.05},
    "heron hiso": {"local_steps": 2, "probes": 2, "client_optimizer": "hiso"},
}
"""What is run by label, whose first word is the method."""


def untimed(result: RunResult) -> list[RoundRecord]:
    return [replace(record, seconds=0.0) for record in result.history]


def assert_equal(found: RunResult, expected: RunResult) -> None:
    """Compare every number but the seconds."""
    assert untimed(found) == untimed(expected)  # losses, metrics, digests, bytes, exchanges
    assert replace(found.summary, seconds=0.0) == replace(expected.summary, seconds=0.0)
    assert found.model.keys() == expected.model.keys()
    assert all(torch.equal(found.model[name], expected.model[name]) for name in expected.model)


@pytest.mark.simulation
def test_ray_equals_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {label.split()[0] for label in METHODS} == set(KNOWN)
    # One start of Ray for all methods: the others train on the same grid after the first. The
    # clients' larger arrays go to files there, and stay in Flower's context inline.
    # Nodes remember from one method to the next, so none here takes up the state of an optimiser.
    first, *others = METHODS
    found: dict[str, RunResult] = {}

    def execute_all(grid: Grid, task: SplitTask, plan: Plan, observer: Any) -> RunResult:
        result = execute(grid, task, plan, observer)
        for label in others:
            name = label.split()[0]
            options = {"method": name, "task": "digits", **SHARED, **METHODS[label]}
            found[label] = execute(grid, task, Plan.read(options))
        return result

    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(simulation, "execute", execute_all)
        patch.setenv("SFL_STATE_LIMIT", "2000")
        found[first] = simulate(
            "digits", first, on_round=lambda r: seen.append(r.round), **SHARED, **METHODS[first]
        )
    assert seen == [0, 1, 2, 3]
    for label, options in METHODS.items():
        inline = simulate("digits", label.split()[0], backend="inline", **{**SHARED, **options})
        assert_equal(found[label], inline)


@pytest.mark.simulation
def test_ray_equals_inline_where_running_statistics_move() -> None:
    task = SplitTask(
        "statistics", tiny.with_batch_norm, "act", partial(tiny.samples, 48),
        partial(tiny.samples, 40, 1), tiny.CLASSES,
    )  # fmt: skip
    options = {**SHARED, "minibatches": 2, "partition": "iid"}
    found, inline = (
        simulate(task, "ho_sfl", backend=backend, **options) for backend in ("ray", "inline")
    )
    assert int(inline.model["norm.num_batches_tracked"]) == 6
    assert_equal(found, inline)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Flower's entry point call the apps in this process, as far as `simulate` can see."""

    def run_simulation(
        server_app: Callable[..., None], client_app: Any, num_supernodes: int, backend_config: Any
    ) -> None:
        logging.getLogger("flwr").warning("DEPRECATED FEATURE: The `run_simulation` function ...")
        logging.getLogger("flwr").warning("something that matters")
        assert backend_config["client_resources"] == {"num_cpus": 1, "num_gpus": 0}
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        with identity(1, SUPERLINK):
            try:
                server_app(InlineGrid(client_app, num_supernodes), context)
            except Exception as error:
                raise RuntimeError("Exception in ServerApp thread") from error

    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation)


@pytest.mark.flower
@pytest.mark.usefixtures("no_ray")
def test_what_stops_the_server_is_raised_as_it_is() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        simulate("digits", rounds=20, clients=2, server_lr=1e30)


@pytest.mark.parametrize("backend", ["ray", "inline"])
def test_a15_more_clients_than_samples_are_found_before_anything_starts(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("flwr.simulation.run_simulation", None)
    with pytest.raises(ConfigError, match="samples cannot give each of 2000 clients"):
        simulate("digits", rounds=1, clients=2000, backend=backend, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.flower
@pytest.mark.parametrize("late", [False, True])
def test_a18_e8_when_ray_cannot_start_the_cause_is_said_once_and_no_thread_is_left(
    late: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Flower's own: the ServerApp in a thread, Ray's failure in the caller.

    The thread comes to the app before the failure, or only after it.
    """
    log = logging.getLogger("flwr")
    inside, failed = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def entered(*given: Any) -> RunResult:
        inside.set()
        return execute(*given)

    monkeypatch.setattr(simulation, "execute", entered)

    def run_simulation(server_app: Callable[..., None], *rest: Any, **more: Any) -> None:
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        nobody = InlineGrid(ClientApp(), 0)

        def serve() -> None:
            if late:
                failed.wait(60)
            with contextlib.suppress(TrainingError), identity(1, SUPERLINK):
                server_app(nobody, context)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        assert late or inside.wait(60)
        try:
            try:
                raise OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/xxx\nand more")
            except OSError as error:
                log.error("An exception occured!! %s", error)
                log.error("Traceback (most recent call last):\n  File ...")
                raise RuntimeError("Simulation Runtime crashed.") from error
        except RuntimeError as error:
            raise RuntimeError("An error was encountered. Ending simulation.") from error

    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation)
    monkeypatch.setattr(log, "propagate", True)
    with pytest.raises(TrainingError) as caught:
        simulate("digits", rounds=1, clients=3, client_threads=16, join_timeout=500.0)
    if late:
        failed.set()
        threads[0].join(60)
    said = str(caught.value)
    assert "AF_UNIX path length cannot exceed 107 bytes: /tmp/xxx;" in said
    assert "client-threads = 16" in said and 'backend="inline"' in said and "\n" not in said
    assert "--backend inline" in caught.value.shell
    assert [record.getMessage() for record in caplog.records] == []
    assert not threads[0].is_alive()
    assert inside.is_set() != late


@pytest.mark.flower
@pytest.mark.usefixtures("no_ray")
def test_an_error_of_a_users_function_is_not_hidden() -> None:
    def observer(record: RoundRecord) -> None:
        raise ZeroDivisionError("in the user's own function")

    with pytest.raises(TrainingError, match="in the user's own function") as caught:
        simulate("digits", rounds=1, clients=2, on_round=observer)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.flower
@pytest.mark.usefixtures("no_ray")
def test_warnings_are_shown_and_advice_against_flowers_function_is_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("flwr")
    monkeypatch.setattr(log, "propagate", True)
    before = (log.level, list(log.filters))
    simulate("digits", rounds=1, clients=2)
    assert [record.getMessage() for record in caplog.records] == ["something that matters"]
    assert (log.level, list(log.filters)) == before


def test_an_unknown_backend_starts_nothing() -> None:
    with pytest.raises(ConfigError, match="backend is 'dask'; it must be one of ray, inline"):
        simulate("digits", rounds=1, clients=2, backend="dask")
