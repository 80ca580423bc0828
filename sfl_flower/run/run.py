"""One run on the server: build the strategy, train, keep everything on disk as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

from sfl_flower.callbacks.callback import Callback, Ended, Run, Written
from sfl_flower.callbacks.hooks import Hooks, check_callbacks
from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError
from sfl_flower.methods import Method, read_options
from sfl_flower.options import Amount
from sfl_flower.report import History, RoundRecord, RunDirectory, Summary
from sfl_flower.report.conduct import conduct
from sfl_flower.report.run_directory import CONFIG
from sfl_flower.run.micro_batch import samples_in_budget
from sfl_flower.run.resume import go_on, which_checkpoint
from sfl_flower.run.terms import terms
from sfl_flower.server.evaluation import VALIDATION
from sfl_flower.server.frozen_parameters import counts
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.split import parts
from sfl_flower.task import SplitTask
from sfl_flower.tasks import TASKS, read_task_options, task_options

__all__ = ["Plan", "RunResult", "execute"]

_log = getLogger("flwr")

Observer = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and not begun.

    Attributes
    ----------
    config : RunConfig
        Settings that every method shares.
    method : Method
        The method.
    settings : Settings
        Settings of the method.
    task_options : Mapping[str, Any]
        Options of a ready-made task, for the record.
    out : Path or None
        The run directory; None keeps nothing on disk.
    resume : {"", "last", "previous"}
        The checkpoint in the directory to go on from, empty for a new run.
    callbacks : tuple of Callback
        Told of the run as it goes.
    """

    config: RunConfig
    method: Method
    settings: Settings
    task_options: Mapping[str, Any]
    out: Path | None = None
    resume: str = ""
    callbacks: tuple[Callback, ...] = ()

    @classmethod
    def read(
        cls,
        options: Mapping[str, Any],
        out: Path | str | None = None,
        resume: bool | str = False,
        callbacks: Iterable[Callback] = (),
    ) -> Plan:
        """Check flat options, and which checkpoint to go on from; see `read_options`."""
        config, method, settings, task_options = read_options(options)
        if resume and out is None:
            raise ConfigError("resume=True needs out=, the directory of the run to go on with.")
        task_options = read_task_options(config.task, task_options)
        place, which = None if out is None else Path(out).expanduser(), which_checkpoint(resume)
        told = check_callbacks(callbacks)
        return cls(config, method, settings, task_options, place, which, told)

    def resolved(self) -> dict[str, Any]:
        """Return every setting, defaults of a ready-made task included, for `config.json`."""
        name = self.config.task
        options = {**(task_options(name) if name in TASKS else {}), **self.task_options}
        task = {f"task.{option}": value for option, value in options.items()}
        return {**self.config.to_dict(), **self.settings.to_dict(), **task}


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes
    ----------
    history : History
        A record per round.
    summary : Summary
        One row of a table.
    model : dict[str, Tensor]
        The whole model's weights under their original names.
    out : Path or None
        The run directory.
    ended : str
        What ended the run before its last round, in sentences; "" where every round was run.
    """

    history: History
    summary: Summary
    model: dict[str, Tensor]
    out: Path | None
    ended: str = ""


def execute(grid: Grid, task: SplitTask, plan: Plan, observer: Observer | None = None) -> RunResult:
    """Train on a grid.

    Parameters
    ----------
    grid : Grid
        Flower's grid, or the inline one.
    task : SplitTask
        The learning problem.
    plan : Plan
        The settings.
    observer : callable, optional
        Called with the record of each round.

    Raises
    ------
    SflError
        If the run cannot go on; what was trained so far is in the run directory.
    """
    directory: RunDirectory | None = None
    history = History()

    def on_round(record: RoundRecord) -> None:
        history.append(record)
        if directory is not None:
            directory.append(record)
        hooks.kept(record)
        if observer is not None:
            observer(record)

    saved = 0  # none of the round before training: a run that ended there begins anew

    def save(strategy: SplitStrategy, checkpoint: bool = True) -> None:
        nonlocal saved
        if directory is not None:
            _save(directory, strategy, checkpoint)
            if checkpoint:
                saved = strategy.round
                hooks.saved(Written(saved, directory.checkpoints.last))

    config, measured = _divided(task, plan)
    strategy = plan.method.server(task, config, plan.settings, on_round=on_round, save=save)
    hooks = Hooks(plan.callbacks, _told(strategy, plan))
    hooks.say = strategy.account.say
    with hooks.broken_off():
        if plan.out is None:
            _begin(strategy, hooks, history)
            _train(strategy, grid)
            summary = _summary(strategy, history, plan.out)
        else:
            # After the strategy: settings it refuses leave no directory behind.
            opened = RunDirectory.reopen if plan.resume else RunDirectory.create
            directory = opened(plan.out, plan.resolved(), measured=measured)
            with closing(directory):
                if plan.resume:
                    begin = partial(_begin, strategy, hooks)
                    history = go_on(directory, strategy, plan.resume, begin)
                elif spending := vars(strategy).get("spending"):
                    spending.keep = directory.asked.append
                if not plan.resume:
                    try:
                        _begin(strategy, hooks, history)
                    except BaseException:  # then no run is there
                        (directory.path / CONFIG).unlink()
                        raise
                try:
                    _train(strategy, grid)
                finally:
                    if strategy.records:
                        # A round that was broken off is no place to go on from, and saving one
                        # twice would cost the generation before it.
                        whole = strategy.records[-1].round == strategy.round
                        save(strategy, whole and saved != strategy.round)
                        directory.plot()
                summary = _summary(strategy, history, plan.out)
                directory.write_summary(summary, _facts(strategy))
    ended = strategy.account.ended
    hooks.end(Ended(ended, summary=deepcopy(summary)))
    return RunResult(history, summary, strategy.model(), plan.out, ended)


def _told(strategy: SplitStrategy, plan: Plan) -> Run:
    """Return what callbacks are told of a run before it begins."""
    names = {"loss", *strategy.task.metrics}
    if strategy.config.validation:
        names |= {f"{VALIDATION}{name}" for name in names}
    settings = MappingProxyType(plan.resolved())
    about = strategy.name, strategy.task.name, settings, frozenset(names)
    return Run(*about, plan.out, strategy.model)


def _begin(strategy: SplitStrategy, hooks: Hooks, history: History) -> None:
    """Tell callbacks that the run begins, and let them say that it is over already."""
    account = strategy.account
    account.judge = hooks.stop
    if (why := hooks.begin(history)) and not account.over(strategy.round):
        account.end(strategy.round, f"The run is over. {why}.")
        _log.warning("Nothing is left to train: %s.", why)


def _divided(task: SplitTask, plan: Plan) -> tuple[RunConfig, dict[str, int]]:
    """Return the configuration with a number of samples for a budget, and what was measured.

    A run that goes on has the number that it had.
    """
    config = plan.config
    if not Amount.budget(config.micro_batch):
        return config, {}
    known = RunDirectory(plan.out, tensorboard=False).measured if plan.out and plan.resume else {}
    size = known.get("micro_batch") or samples_in_budget(task, plan.method, config, plan.settings)
    return replace(config, micro_batch=str(size)), {"micro_batch": size}


def _train(strategy: SplitStrategy, grid: Grid) -> None:
    if strategy.account.over(strategy.round):
        return
    strategy.start(
        grid=grid,
        initial_arrays=strategy.arrays(),
        num_rounds=strategy.config.rounds - strategy.round,
        timeout=strategy.config.timeout,
        evaluate_fn=strategy.evaluate,
    )


def _save(directory: RunDirectory, strategy: SplitStrategy, checkpoint: bool) -> None:
    directory.save_model(strategy.state_dict())
    if (journal := strategy.journal) is not None:
        directory.write_bytes("journal.bin", journal.encode())
    directory.write_ledger(strategy.ledger.to_dict())
    if checkpoint:
        directory.save_checkpoint(*strategy.checkpoint())


def _summary(strategy: SplitStrategy, history: History, out: Path | None) -> Summary:
    ledger = strategy.ledger
    evaluated = [record for record in history if record.metrics]
    return Summary(
        method=strategy.name,
        server_lr=strategy.facts.server_lr,
        metrics=evaluated[-1].metrics if evaluated else {},
        samples=ledger.samples,
        ledger=ledger.to_dict()["bytes"],
        exchanges=ledger.exchanges,
        client_peak_bytes=ledger.client_peak_bytes or None,
        client_flops=ledger.client_flops or None,
        seconds=history[-1].seconds if len(history) else 0.0,
        terms=terms(strategy, history),
        clients=conduct(history),
        out=out,
    )


def _facts(strategy: SplitStrategy) -> dict[str, Any]:
    """Return what decides a comparison and is not in the configuration: data and first weights."""
    task = strategy.task
    halves = task.build(strategy.config.model_seed)
    weights = {**halves.client.state_dict(), **halves.server.state_dict()}
    digest = hashlib.sha256()
    for name in sorted(weights):
        for part, value in parts(name, weights[name]):
            digest.update(part.encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    test = task.samples("test").y
    return {
        "cut": task.cut,
        "trained": task.trained,
        "client_trained": counts(halves.client)[1],
        "classes": task.classes,
        "server_precision": strategy.facts.precision(strategy.config),
        "training_samples": strategy.training_samples or None,
        "test_samples": len(test),
        "test_labels": hashlib.sha256(test.numpy().tobytes()).hexdigest(),
        "initial_weights": digest.hexdigest(),
    }
