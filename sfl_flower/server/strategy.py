"""The server side that every method shares: rounds, evaluation, checkpoints, the record."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import WireError
from sfl_flower.report import RoundRecord
from sfl_flower.server.account import Account
from sfl_flower.server.aggregate import check_aggregator, find_aggregator
from sfl_flower.server.checkpoint import Progress, fitting
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.evaluation import evaluate_halves
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.frozen_parameters import Held, check_checkpoint, check_first_weights
from sfl_flower.server.identity import check_identity, identity
from sfl_flower.server.joining import Joining
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.probing import Noise
from sfl_flower.server.received import finite_mean, smashed_shape
from sfl_flower.server.records import as_record, from_record
from sfl_flower.server.roster import Member, Roster
from sfl_flower.server.screening import Screening
from sfl_flower.server.setup import run_setup
from sfl_flower.server.subspace import fitted, resolved
from sfl_flower.server.summary import log_summary
from sfl_flower.server.trainer import Trainer
from sfl_flower.server.unwrapped import Unwrapped
from sfl_flower.split import load_dequantised, load_travelling, plain_weights, travelling_state
from sfl_flower.task import SplitTask
from sfl_flower.task.models import unused_state
from sfl_flower.training.device import find_device
from sfl_flower.training.modes import torch_threads
from sfl_flower.wire import Ledger, Usage
from sfl_flower.zo import Journal

__all__ = ["SplitStrategy"]


class SplitStrategy(Unwrapped):
    """Base of every method's server side, a Flower strategy.

    The exchanges of a round run inside `configure_train`, the only train hook that Flower gives
    the grid; it returns no messages of its own. `start` is Flower's.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    config : RunConfig
        Settings of the run.
    settings : Settings, optional
        Settings of the method; its defaults when left out.
    on_round : callable, optional
        Called with the record of each round, round 0 (before training) included.
    save : callable, optional
        Called with the strategy when a checkpoint is due.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    facts: ClassVar[Facts]

    def __init__(
        self,
        task: SplitTask,
        config: RunConfig,
        settings: Settings | None = None,
        *,
        on_round: Callable[[RoundRecord], None] | None = None,
        save: Callable[[SplitStrategy], None] | None = None,
    ) -> None:
        self.task, self.config = resolved(task, config.model_seed), config
        self.settings = settings if settings is not None else self.settings_type()
        self.check_options(config, self.settings)
        self.aggregator = find_aggregator(config.aggregator)
        self.account = Account(config, on_round)
        self.screening = Screening(config)
        self.round = 0
        told = self.task is not task  # of what the server chose
        self.setup = run_setup(self.task, config, self.settings, self.facts, told)
        self.device = find_device(config.server_device, "server-device")
        halves = fitted(self.task, config.model_seed, config.subspace_from)
        self.client_half: nn.Module = halves.client.to(self.device)
        self.server = self.new_trainer(halves.server.to(self.device))
        self._roster = Roster(config, self.settings, self.task)
        self._late: dict[str, None] = {}
        self._terms_held: dict[int, set[bytes]] = {}
        self._save = save
        self._z_shape: tuple[int, ...] | None = None
        opened = self.client_half if config.subspace_from == "clients" else None
        self._joining = Joining(self.setup, self.facts.whole, self._on_clients, opened, self._begin)
        self.prepare()

    # What a method brings

    @staticmethod
    def cost(parts: Parts) -> ClientCost | None:
        """Return what a mini-batch costs a client, None where no closed form is given."""
        return None

    @classmethod
    def check_options(cls, config: RunConfig, settings: Settings) -> None:
        """Raise `ConfigError` where settings of the run and of the method do not go together."""
        check_aggregator(config)
        cls.facts.check_config(cls.name, config)

    def prepare(self) -> None:
        """Set up what the method needs; the halves are built. Bad settings are refused here."""

    @abstractmethod
    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round with these clients."""

    def new_trainer(self, module: nn.Module) -> Trainer:
        """Return what trains a server half by backprop as this run does."""
        task, config = self.task, self.config
        sent = config.gradients if self.facts.gradients else "float32"
        return Trainer(module, task.loss, task.classes, config, task.ignore_label, sent, True)

    def server_halves(self) -> list[Trainer]:
        """Return what the server trains by backprop and keeps; each round sets its rate."""
        return [self.server]

    def noise(self) -> Noise | None:
        """Return what decides the noise of the client's estimates; None without zeroth order."""
        return None

    def method_tensors(self) -> dict[str, Tensor]:
        """Return the method's state for a checkpoint."""
        return {f"client.{k}": v.clone() for k, v in travelling_state(self.client_half).items()}

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the method's state back."""
        self.load_client({k.removeprefix("client."): v for k, v in tensors.items()})

    def load_client(self, state: Mapping[str, Tensor]) -> None:
        """Put client-half weights in place before the first round."""
        load_travelling(self.client_half, state)

    def held_head(self) -> tuple[str, nn.Module] | None:
        """Return kind and module of the auxiliary head that clients hold; None without one."""
        return None

    @property
    def ledger(self) -> Ledger:
        """Bytes, exchanges and samples so far."""
        return self.account.ledger

    @property
    def records(self) -> list[RoundRecord]:
        """A record for each round since the run began or went on."""
        return self.account.records

    @property
    def version(self) -> int:
        """Version of the client half."""
        return self.round

    @property
    def digest(self) -> str:
        """Digest of the journal, empty for a method without one."""
        return ""

    @property
    def journal(self) -> Journal | None:
        """The journal that clients follow, None for a method without one."""
        return None

    @property
    def training_samples(self) -> int:
        """Training samples of all clients, as far as they are known; 0 before training."""
        return self._roster.samples

    # Flower's hooks

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run the exchanges of a round; returns no further messages."""
        self.check_unwrapped()
        with torch_threads(self.config.server_threads):
            if server_round == 1:
                self._start(arrays)
            self.round = self.account.begin_round(server_round)
            for half in self.server_halves():
                half.begin(self.round)
            told = self.name, self.config.client_key, self._terms_held, self.config.wave
            exchange = Exchange(grid, self.ledger, self.config.timeout, self._late, *told)
            online = self._roster.refresh(
                grid, lambda x: self._joining.ask(x, exchange, self.account), exchange.tally
            )
            self.setup = self._joining.settle(online)
            cohort = self._roster.cohort(self.round, online)
            outcome = self.train_round(self.round, cohort, exchange)
        counted = outcome.counted(self.facts, self.settings.server_pace)
        self.account.close(self.round, counted, exchange.tally)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round: evaluate, save, record.

        Returns
        -------
        arrays : ArrayRecord or None
            The whole model in rounds that are evaluated, None in others.
        metrics : MetricRecord
            Numbers of the round.
        """
        due = self.account.over(self.round) or self.round % self.config.evaluation_period == 0
        self._record(due)
        last = self.account.over(self.round)  # its record may have ended the run
        if self._save and (last or self.round % self.config.checkpoint_period == 0):
            self._save(self)
        return (self.arrays() if due or last else None), MetricRecord(self.account.metrics())

    def summary(self) -> None:
        """Log what is trained and how, and warn where zeroth order is too noisy to learn."""
        task, config, noise = self.task, self.config, self.noise()
        warnings = [*self.settings.warnings(), noise.warning(task, config) if noise else ""]
        log_summary(self.name, task.name, config, self.client_half, self.server.module, warnings)

    # The model

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of the first test samples, on the device of the halves."""
        x, y = self.task.batch(self.task.samples("test"), slice(0, count))
        return x.to(self.device), y.to(self.device)

    def model(self) -> dict[str, Tensor]:
        """Return a copy of the whole model's weights."""
        return {k: v.detach().clone() for k, v in self.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole model's weights by their original names, on the CPU, none quantised."""
        halves = {**self.client_half.state_dict(), **self.server.module.state_dict()}
        return plain_weights({**unused_state(self.task, self.config.model_seed), **halves})

    def arrays(self) -> ArrayRecord:
        """Return the whole model's weights as Flower's record."""
        return as_record(self.model())

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Give Flower the metrics of a round that was evaluated; pass it as `evaluate_fn`."""
        for record in reversed(self.records):
            if record.round == self.account.first + server_round and record.metrics:
                return MetricRecord(dict(record.metrics))
        return None

    def metering(self, round: int) -> str:
        """Return what clients measure in a round: memory in the first, operations in the second."""
        return self.account.metering(round)

    def book_usage(self, usages: Iterable[Usage]) -> None:
        """Book what clients measured in this round."""
        self.account.book_usage(usages)

    def evaluate_model(self) -> dict[str, float]:
        """Return loss and metrics of the whole model, see `evaluate_halves`."""
        return evaluate_halves(self.task, self.config, self.client_half, self.server.module)

    def averaging(self, exchange: Exchange) -> AbstractContextManager[None]:
        """Run a block that loads means over clients; see `finite_mean`."""
        halves = (self.client_half, self.server.module, *(self.held_head() or ())[1:])
        return finite_mean(self.task, exchange.tally, *halves)

    def expect_z(self, z: np.ndarray) -> None:
        """Refuse smashed data whose shape per sample is not that of the task's own data.

        Raises
        ------
        WireError
            If the shape differs.
        """
        if self._z_shape is None:
            self._z_shape = smashed_shape(self.task, self.client_half)
        if z.shape[1:] != self._z_shape:
            wanted = ", ".join(map(str, self._z_shape))
            raise WireError(f"smashed data has shape {z.shape}, expected [n, {wanted}].")

    # Checkpoints

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and plain values from which the run goes on exactly."""
        held = (self.server, self.screening, self._joining)
        parts = (self.method_tensors(), *(part.tensors() for part in held))
        tensors = {name: value.cpu() for part in parts for name, value in part.items()}
        return tensors, {
            **self.account.progress(self.round).to_dict(),
            "base": self._on_clients().digest,
            "data": self._roster.data,
            **identity(self.task, self.config),
        }

    def resume(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; `start` then runs the rounds that are left.

        Raises
        ------
        TrainingError
            If it belongs to another model, or to other frozen parameters, or cannot be used.
        """
        progress = Progress.read(values)
        check_checkpoint(values, self._on_clients().modules)
        with fitting("its tensors and what it was made with"):
            self._joining.go_on(tensors)
            self.server.load_tensors(tensors)
            self.load_method_tensors(tensors)
            self.screening.load_tensors(tensors)
            check_identity(values, identity(self.task, self.config))
            self._roster.go_on(str(values["data"]))
        self.account.go_on(progress)
        self.round = progress.round

    # Inside

    def _start(self, arrays: ArrayRecord) -> None:
        if self.account.first:
            return
        self.account.begin()
        own = self.state_dict()
        state = from_record(arrays, own)
        if any(not torch.equal(state[k], own[k]) for k in own):
            check_first_weights(state, self._on_clients().modules)
            self._begin(state)
            load_dequantised(self.server.module, state)
        self._record(True)

    def _begin(self, state: Mapping[str, Tensor] | None = None) -> None:
        self.load_client({**travelling_state(self.client_half), **(state or self.state_dict())})

    def _on_clients(self) -> Held:
        halves = (self.client_half, self.server.module)
        return Held.of(*halves, self.facts.whole, self.held_head())

    def _record(self, due: bool) -> None:
        self.account.record(self.round, due, self.evaluate_model, self.version, self.digest)
