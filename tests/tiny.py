"""A learning problem of a few hundred numbers, and a run of it with faults."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context
from torch import Tensor, nn

from sfl_flower.callbacks import Callback
from sfl_flower.callbacks.hooks import check_callbacks
from sfl_flower.config import RunConfig
from sfl_flower.node.downlink import forget_held
from sfl_flower.node.sync import forget_recent
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.run import Plan, RunResult, execute
from sfl_flower.task import Samples, SplitTask
from sfl_flower.wire.flower import SUPERLINK, identity
from tests.local_grid import Fault, LocalGrid

FEATURES, CUT, CLASSES = 6, 5, 3
CLIENT_SIZE = FEATURES * CUT + CUT
"""Trainable parameters of the client half: 35."""


def model() -> nn.Module:
    """Return 6 -> 5 -> tanh | 5 -> 4 -> tanh -> 3."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(FEATURES, CUT),
            act=nn.Tanh(),
            hidden=nn.Linear(CUT, 4),
            act2=nn.Tanh(),
            out=nn.Linear(4, CLASSES),
        )
    )


def with_batch_norm() -> nn.Module:
    """Return a model with BatchNorm on both sides of the cut (`act`): float and int buffers."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(FEATURES, CUT),
            norm=nn.BatchNorm1d(CUT),
            act=nn.Tanh(),
            hidden=nn.Linear(CUT, 4),
            norm2=nn.BatchNorm1d(4),
            out=nn.Linear(4, CLASSES),
        )
    )


def samples(count: int, seed: int = 0) -> Samples:
    """Return learnable samples: the label is the largest of three sums of inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES)).astype(np.float32)
    y = x.reshape(count, CLASSES, -1).sum(axis=2).argmax(axis=1)
    return Samples(torch.from_numpy(x), torch.from_numpy(y))


class SharedOut(SplitTask):
    """A task whose shares of the data are given, without a partitioner."""

    shares: list[Samples]

    def given(self, config: RunConfig) -> None:
        """Keep the clients from dividing the training set: it is the shares, one after another."""
        ends = np.cumsum([len(share) for share in self.shares])
        rows = [
            np.arange(end - len(share), end) for share, end in zip(self.shares, ends, strict=True)
        ]
        self.memo(("rows", config.partition_spec()), lambda: rows)


def task(
    shares: list[Samples] | None = None,
    build: Callable[[], nn.Module] = model,
    clients: int = 4,
    each: int = 12,
    cut: str = "act",
    test: Callable[[], Samples] = lambda: samples(40, 1),
    own: bool = False,
    **options: Any,
) -> SplitTask:
    """Return a task; client i holds `shares[i]`, by default `each` samples of its own.

    With `own` it is told its context and loads no more than that (`partition="local"`).
    """
    if shares is None:
        whole = samples(clients * each)
        shares = [whole.take(slice(i * each, (i + 1) * each)) for i in range(clients)]
    x, y = torch.cat([share.x for share in shares]), torch.cat([share.y for share in shares])
    given = list(shares)

    def of_node(context: Context) -> Samples:
        return given[int(context.node_config["partition-id"])]

    made = SharedOut(
        name="tiny",
        model=build,
        cut=cut,
        train=of_node if own else lambda: Samples(x, y),
        test=test,
        classes=CLASSES,
        **options,
    )
    object.__setattr__(made, "shares", shares)
    return made


DEFAULTS: dict[str, Any] = {
    "rounds": 3,
    "clients": 4,
    "batch_size": 4,
    "join_timeout": 0.2,
    "eval_every": 1,
    "server_momentum": 0.0,
}
PAPER: dict[str, Any] = {
    "server_steps": "round", "probes": 4, "client_lr": 0.02, "clip_norm": 0.0,
}  # fmt: skip
"""The paper's form of HO-SFL, whose rounds can be worked out by hand."""
FORMS: dict[object, dict[str, Any]] = {"ho_sfl": PAPER, "frozen": {"server_steps": "round"}}
"""By method: what these tests take instead of its defaults, which are chosen to learn."""


def plan(
    method: str = "ho_sfl", out: Path | None = None, resume: bool | str = False, **o: Any
) -> Plan:
    """Return a checked plan with the defaults of these tests."""
    return Plan.read(
        {**DEFAULTS, **FORMS.get(method, {}), **o, "method": method, "task": "tiny"}, out, resume
    )


def patience(faults: Iterable[Fault]) -> float:
    """Return seconds to wait: few where a reply is missing, for on this grid none is slow."""
    return 0.05 if any(fault.kind in ("drop", "mute", "late") for fault in faults) else 60.0


@dataclass
class Trial:
    """A finished run and what it left in memory."""

    strategy: Any  # one of the strategies; tests look inside
    grid: LocalGrid

    @property
    def model(self) -> dict[str, Tensor]:
        """The whole model."""
        return self.strategy.model()  # type: ignore[no-any-return]

    @property
    def notes(self) -> str:
        """All notes of all rounds."""
        return "\n".join(note for record in self.strategy.records for note in record.notes)

    def total(self, name: str) -> int:
        """Sum of a counter of the records."""
        return sum(getattr(record, name) for record in self.strategy.records)

    def position(self, client: int) -> tuple[int, str]:
        """Version and digest that a client remembers; (-1, "") for none."""
        state = self.grid.contexts[self.grid.nodes[client]].state
        record = state.config_records.get("position")
        return (-1, "") if record is None else (int(record["version"]), str(record["digest"]))  # type: ignore[arg-type]

    def theta(self, client: int) -> np.ndarray:
        """The parameters that a client remembers."""
        state = self.grid.contexts[self.grid.nodes[client]].state
        return state.array_records["replica"]["theta"].numpy()


def begin(
    problem: SplitTask, method: str = "ho_sfl", faults: Iterable[Fault] = (), **options: Any
) -> Trial:
    """Return a strategy and its grid, not started."""
    forget_recent()
    forget_held()
    faults = list(faults)
    checked = plan(method, **{"timeout": patience(faults), **options})
    if isinstance(problem, SharedOut):
        problem.given(checked.config)
    grid = LocalGrid(
        make_client_app(lambda context: problem, [checked.method]), checked.config.clients, faults
    )
    strategy = checked.method.server(problem, checked.config, checked.settings)
    return Trial(strategy, grid)


def start(trial: Trial) -> Trial:
    """Run a begun trial to its end."""
    strategy = trial.strategy
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with identity(1, SUPERLINK):
            strategy.start(
                grid=trial.grid,
                initial_arrays=strategy.arrays(),
                num_rounds=strategy.config.rounds - strategy.round,
                timeout=strategy.config.timeout,
                evaluate_fn=strategy.evaluate,
            )
    finally:
        log.setLevel(level)
    return trial


def train(
    problem: SplitTask, method: str = "ho_sfl", faults: Iterable[Fault] = (), **options: Any
) -> Trial:
    """Train a task on a grid with faults."""
    return start(begin(problem, method, faults, **options))


def run(
    problem: SplitTask,
    method: str = "ho_sfl",
    faults: Iterable[Fault] = (),
    *,
    out: Path | None = None,
    resume: bool | str = False,
    observer: Callable[[Any], None] | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> RunResult:
    """Train as `simulate` does, on a grid with faults."""
    forget_recent()
    forget_held()
    faults = list(faults)
    checked = plan(method, out, resume, **{"timeout": patience(faults), **options})
    checked = replace(checked, callbacks=check_callbacks(callbacks))
    if isinstance(problem, SharedOut):
        problem.given(checked.config)
    grid = LocalGrid(
        make_client_app(lambda context: problem, [checked.method]), checked.config.clients, faults
    )
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with identity(1, SUPERLINK):
            return execute(grid, problem, checked, observer)
    finally:
        log.setLevel(level)


class Stop(Exception):
    """Ends a run from outside."""


def stopped(
    problem: Callable[[], SplitTask],
    folder: Path,
    after: int,
    method: str = "ho_sfl",
    **options: Any,
) -> tuple[RunResult, RunResult]:
    """Train as `run` without a stop, and stopped after a round and resumed.

    Parameters
    ----------
    problem : callable
        Makes the task.
    folder : Path
        Of the runs, ``whole`` and ``parts``.
    after : int
        The round.
    method, **options
        Of both.
    """

    def stop(record: Any) -> None:
        if record.round == after:
            raise Stop

    whole = run(problem(), method, out=folder / "whole", **options)
    with pytest.raises(Stop):
        run(problem(), method, out=folder / "parts", observer=stop, **options)
    return whole, run(problem(), method, out=folder / "parts", resume=True, **options)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def flat(state: dict[str, Tensor], names: Iterable[str]) -> Tensor:
    """Return the named tensors as one float64 vector, in the canonical (sorted) order."""
    return torch.cat([state[name].reshape(-1).to(torch.float64) for name in sorted(names)])


STEADY: dict[str, dict[str, Any]] = {
    "heron": {"client_lr_schedule": "constant", "client_lr_warmup": 0},
}
"""By method: what makes its first rounds the same however many follow."""

CLIENT_NAMES = ("first.bias", "first.weight")
