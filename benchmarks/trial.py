"""A run in this process whose ledger can be read round by round."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.clientapp import ClientApp

from sfl_flower.config import RunConfig
from sfl_flower.errors import TrainingError
from sfl_flower.methods import METHODS
from sfl_flower.node.downlink import forget_held
from sfl_flower.node.sync import forget_recent
from sfl_flower.report import RoundRecord
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.inline import InlineGrid
from sfl_flower.run.run import Plan, RunResult, execute
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.task import SplitTask
from sfl_flower.wire.flower import SUPERLINK, identity

__all__ = ["client_app", "executed", "options_for", "own_state", "quiet", "train"]


def options_for(method: str, options: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """Return the options of one method for another in the same experiment.

    Parameters
    ----------
    method : str
        The other method.
    options : Mapping[str, Any]
        Flat options, as of a preset; those that the other method does not have are left out.
    **changed
        Further options.
    """
    known = RunConfig.keys() | set(METHODS[method].settings.__dataclass_fields__)
    kept = {k: v for k, v in options.items() if k in known or k.startswith("task.")}
    return {**kept, "method": method, **changed}


def train(
    task: SplitTask,
    plan: Plan,
    rounds: int,
    after_round: Callable[[SplitStrategy], None] | None = None,
    before: Callable[[SplitStrategy], None] | None = None,
) -> SplitStrategy:
    """Run the first rounds of a plan on the inline backend and return its strategy.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    plan : Plan
        The settings.
    rounds : int
        Rounds to run; the plan's own number of rounds stays what it is.
    after_round : callable, optional
        Called with the strategy after each round, round 0 (before training) included.
    before : callable, optional
        Called with the strategy once it is built.

    Raises
    ------
    TrainingError
        If a reply was missing or refused: what is measured would be another run.
    """

    def note(record: RoundRecord) -> None:
        if record.failures or record.rejected:
            raise TrainingError(f"A measured run lost a reply: {'; '.join(record.notes)}")
        if after_round is not None:
            after_round(strategy)

    forget_recent()
    config, settings = plan.config, plan.settings
    strategy = METHODS[config.method].server(task, config, settings, on_round=note)
    if before is not None:
        before(strategy)
    grid = InlineGrid(client_app(task, plan), config.clients)
    with quiet(), own_state(), identity(1, SUPERLINK):
        strategy.start(grid=grid, initial_arrays=strategy.arrays(), num_rounds=rounds)
    return strategy


def client_app(task: SplitTask, plan: Plan) -> ClientApp:
    """Return the clients of a plan, all of which train one task object."""
    return make_client_app(lambda context: task, [plan.method])


def executed(
    grid: InlineGrid,
    task: SplitTask,
    plan: Plan,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> RunResult:
    """Run a whole plan on a grid, with nothing kept of an earlier run in this process.

    Parameters
    ----------
    grid : InlineGrid
        Reaches the clients, those of `client_app`.
    task : SplitTask
        The learning problem.
    plan : Plan
        The settings.
    on_round : callable, optional
        Called with the record of each round.
    """
    forget_recent()
    forget_held()
    with quiet(), own_state(), identity(1, SUPERLINK):
        return execute(grid, task, plan, on_round)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Flower's log to errors for the length of a block."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def own_state() -> Iterator[None]:
    """Keep large state of the virtual clients in a directory that goes with the run."""
    named = os.environ.get("SFL_STATE_DIR")
    with tempfile.TemporaryDirectory(prefix="sfl_flower-") as directory:
        os.environ["SFL_STATE_DIR"] = directory
        try:
            yield
        finally:
            if named is None:
                del os.environ["SFL_STATE_DIR"]
            else:
                os.environ["SFL_STATE_DIR"] = named
