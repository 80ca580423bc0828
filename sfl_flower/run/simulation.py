"""Running a task on virtual clients: on Ray through Flower's simulation, or in this process."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from sfl_flower.errors import ConfigError, DataError, SflError, TrainingError
from sfl_flower.methods import Method
from sfl_flower.node.downlink import forget_held
from sfl_flower.node.shares import divide
from sfl_flower.node.sync import forget_recent
from sfl_flower.options import check_choice
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.inline import InlineGrid
from sfl_flower.run.mods import Mod
from sfl_flower.run.quiet import quiet
from sfl_flower.run.run import Observer, Plan, RunResult, execute
from sfl_flower.run.stoppable import StoppableGrid
from sfl_flower.task import NOT_DIVIDED, NOT_THEIR_OWN, SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.training.device import find_device
from sfl_flower.wire.flower import SUPERLINK, identity, promptly

if TYPE_CHECKING:
    from sfl_flower.callbacks import Callback
    from sfl_flower.node.postprocess import Postprocess

__all__ = ["BACKENDS", "placed", "run_plan", "simulate"]

BACKENDS = ("ray", "inline")

WAVE = 64
"""Requests at one time on Ray: Flower looks at all of them for every node, ten times a second."""
_RUNNING = threading.RLock()


def simulate(
    task: SplitTask | str,
    method: str | Method = "ho_sfl",
    *,
    backend: str = "ray",
    out: Path | str | None = None,
    resume: bool | str = False,
    on_round: Observer | None = None,
    verbose: bool = False,
    postprocess: Postprocess | None = None,
    mods: Sequence[Mod] = (),
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> RunResult:
    """Train a task on virtual clients.

    Parameters
    ----------
    task : SplitTask or str
        The learning problem, or the name of a ready-made one.
    method : str or Method
        A key of `sfl_flower.METHODS`, ``"package.module:name"`` of a method of your own, or the
        method itself.
    backend : {"ray", "inline"}
        Flower's simulation, or the same app in this process with the same results.
    out : path, optional
        Run directory; nothing is written without one.
    resume : bool or {"last", "previous"}
        Whether to go on from the last checkpoint in `out` (True), or from the one before it.
    on_round : callable, optional
        Called with the `RoundRecord` of each round.
    verbose : bool
        Whether to show Flower's own log.
    postprocess, mods
        What every client's app is made with; see `make_client_app`. They are no settings: a
        resumed run has to be given them again.
    callbacks : sequence of Callback
        Told of the run as it goes, and may end it; see `sfl_flower.callbacks`. No settings either.
    **options
        Settings of the run (`RunConfig`) and of the method.

    Returns
    -------
    RunResult
        History, summary and trained model.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range, a mod cannot work, or another thread of this
        process simulates; nothing has been started then.
    SflError
        If training cannot go on; what was trained so far is in `out`.

    Examples
    --------
    >>> from sfl_flower import simulate
    >>> result = simulate("digits", "ho_sfl", backend="inline", rounds=2, clients=4)
    >>> len(result.history)
    3
    """
    if not isinstance(task, str | SplitTask):
        raise ConfigError(
            f"simulate trains a SplitTask or the name of one, not a {type(task).__name__}; "
            "SplitTask(name=..., model=lambda: ..., cut=..., ...) says what to do with a model."
        )
    name = task if isinstance(task, str) else task.name
    plan = Plan.read({**options, "method": method, "task": name}, out, resume, callbacks)
    built = load_task(task, **plan.task_options) if isinstance(task, str) else task
    return run_plan(
        built,
        plan,
        backend=backend,
        observer=on_round,
        verbose=verbose,
        postprocess=postprocess,
        mods=mods,
    )


def run_plan(
    task: SplitTask,
    plan: Plan,
    *,
    backend: str = "ray",
    observer: Observer | None = None,
    verbose: bool = False,
    postprocess: Postprocess | None = None,
    mods: Sequence[Mod] = (),
) -> RunResult:
    """Train a task as planned; see `simulate`."""
    check_choice("backend", backend, BACKENDS)
    if plan.config.partition_spec() is None and not task.own_data:
        raise ConfigError(NOT_THEIR_OWN.format(task.name))
    plan = placed(plan, backend)
    app = make_client_app(lambda context: task, [plan.method], postprocess=postprocess, mods=mods)
    with _alone(), quiet(verbose), _own_state():
        task.check(plan.config.model_seed, plan.config.clients)
        _divide(task, plan)
        if backend == "ray":
            return _on_ray(app, task, plan, observer, verbose)
        forget_recent()
        forget_held()
        with identity(1, SUPERLINK):
            return execute(InlineGrid(app, plan.config.clients), task, plan, observer)


def placed(plan: Plan, backend: str) -> Plan:
    """Return the plan with the device that clients get on a backend, and the size of its waves.

    Parameters
    ----------
    plan : Plan
        The settings.
    backend : {"ray", "inline"}
        As for `simulate`.

    Raises
    ------
    ConfigError
        If one is asked for that is not there.
    """
    config = plan.config
    find_device(config.server_device, "server_device")
    if backend == "inline":
        find_device(config.client_device, "client_device")
        return plan
    config = replace(config, wave=config.wave or WAVE)
    plan = replace(plan, config=config)
    if config.client_gpus:
        if not torch.cuda.is_available():
            raise ConfigError(
                f"client_gpus is {config.client_gpus:g}, but torch {torch.__version__} sees no GPU "
                "in this process; it must be 0, and client_device cpu or auto."
            )
        return plan
    if config.client_device == "cuda":
        raise ConfigError(
            "client_device is cuda with client_gpus 0, which keeps Ray's workers off the GPU; "
            "client_gpus must be above 0, the share of a GPU that a worker takes: 0.25 lets four "
            "share one."
        )
    return replace(plan, config=replace(config, client_device="cpu"))  # so does auto


def _divide(task: SplitTask, plan: Plan) -> None:
    """Divide the training data before anything starts, once instead of once a worker.

    Raises
    ------
    ConfigError
        If the data cannot be divided as the configuration says, or leave some client too few
        samples for the method's settings.
    """
    spec = plan.config.partition_spec()
    if spec is None:
        return
    if task.own_data:
        raise ConfigError(NOT_DIVIDED.format(task.name))
    try:
        divide(task, spec)
    except DataError as error:
        raise ConfigError(str(error)) from error
    fewest = min(len(rows) for rows in task.client_rows(spec))
    if fewest:
        plan.settings.check_held(fewest, plan.config.batch_size)


def _on_ray(
    client_app: ClientApp, task: SplitTask, plan: Plan, observer: Observer | None, verbose: bool
) -> RunResult:
    # Read when Ray starts; without it every start shows a warning about accelerators.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.simulation import run_simulation  # imports Ray

    results: list[RunResult] = []
    errors: list[BaseException] = []
    servers: list[threading.Thread] = []
    stopped, news = threading.Event(), threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        servers.append(threading.current_thread())
        if stopped.is_set():  # begun only after the simulation had failed
            return
        try:
            results.append(execute(StoppableGrid(grid, stopped, news), task, plan, observer))
        except BaseException as error:
            errors.append(error)
            raise

    crash: Exception | None = None
    try:
        with promptly(news):
            run_simulation(
                server_app,
                client_app,
                plan.config.clients,
                backend_config={
                    "client_resources": {
                        "num_cpus": plan.config.client_threads,
                        "num_gpus": plan.config.client_gpus,
                    },
                    "init_args": {"include_dashboard": False, "log_to_driver": verbose},
                },
            )
    except Exception as error:
        crash = error
        if not errors:
            raise _crashed(error, plan) from error
    finally:
        # The server's thread closes the run directory; then nothing keeps the process alive.
        stopped.set()
        for server in servers:
            if server is not threading.current_thread():
                server.join()
    if errors:
        # Flower wraps what the ServerApp raised; people want the first cause.
        if isinstance(errors[0], SflError) or not crash:
            raise errors[0] from None
        raise TrainingError(f"The simulation ended with an error: {errors[0]}") from errors[0]
    if not results:
        raise TrainingError("The simulation ended before training was over; see Flower's log.")
    return results[0]


def _crashed(error: BaseException, plan: Plan) -> TrainingError:
    """Return what to say when Ray does not start, or goes away: the first cause and a way out."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines()
    why = lines[0].rstrip(".") if lines else type(cause).__name__
    threads = plan.config.client_threads
    need = "" if threads == 1 else f"a worker takes client-threads = {threads} processors; "
    said = f"Flower's simulation on Ray cannot start or go on: {why}; {need}"
    rest = "trains the same in this process, without Ray."
    return TrainingError(f'{said}backend="inline" {rest}', shell=f"{said}--backend inline {rest}")


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second run in another thread of this process.

    The two would draw from one torch generator, swap Flower's identity of the process and share
    the halves of a task.
    """
    if not _RUNNING.acquire(blocking=False):
        raise ConfigError(
            "Another simulation is running in a thread of this process, and both would draw from "
            "one generator of torch; run them one after another, or each in a process of its own."
        )
    try:
        yield
    finally:
        _RUNNING.release()


@contextmanager
def _own_state() -> Iterator[None]:
    """Give virtual clients a place for large state that goes with the run."""
    if "SFL_STATE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="sfl_flower-") as directory:
        os.environ["SFL_STATE_DIR"] = directory
        try:
            yield
        finally:
            del os.environ["SFL_STATE_DIR"]
