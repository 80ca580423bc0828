"""The configuration of a run: typed, frozen, one source, and unknown keys are errors.

A run has settings that every method shares (`RunConfig`) and settings of its method (a dataclass
beside the method's strategy).  Both are read from flat ``key=value`` pairs, from the command line,
from Flower's run configuration or from keyword arguments; ``-`` and ``_`` are the same in a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Self

from sfl_flower.data import LARGEST, PARTITIONS, PartitionSpec
from sfl_flower.data.seeding import client_key, division_seed, model_seed
from sfl_flower.errors import ConfigError

from sfl_flower.options import (  # isort: skip
    Amount, Choice, Count, Form, Momentum, Natural, Range, check_options, read_fields,
)  # fmt: skip
from sfl_flower.training.device import DEVICES, PRECISIONS
from sfl_flower.training.optim import FIRST_ORDER
from sfl_flower.training.schedules import SCHEDULES, schedule_text, scheduled

__all__ = ["ENCODED", "LOCAL", "RunConfig", "Settings"]

SOURCES = ("public", "gradients", "noise", "clients")
ENCODED = ("smashed", "gradients")
"""The settings that say how what crosses the cut travels."""
LOCAL = "local"
"""Partition name for clients that bring data of their own instead of a share of the task's."""


@dataclass(frozen=True)
class Settings:
    """Base of a method's own settings; a frozen dataclass whose fields are the options."""

    def __post_init__(self) -> None:
        """Check each option against its annotation; a subclass that checks more calls this first.

        Raises
        ------
        ConfigError
            If a value is not legal.
        """
        check_options(self)

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the mini-batches that a client with so many samples runs in a round.

        Parameters
        ----------
        samples : int
            Training samples of the client.
        batch_size : int
            Samples per mini-batch.
        """
        return 1

    def check_held(self, fewest: int, batch_size: int) -> None:
        """Refuse settings that do not fit the data; called before training, and for late nodes.

        Parameters
        ----------
        fewest : int
            Training samples of a client, or of the one that holds the fewest.
        batch_size : int
            Samples per mini-batch.

        Raises
        ------
        ConfigError
            If they do not.
        """

    def warnings(self) -> list[str]:
        """Return what a person should mind before a run, one sentence each."""
        return []

    @property
    def server_pace(self) -> str:
        """When the server half steps: once a "round", or after every mini-batch ("batch")."""
        return "batch"

    @property
    def control(self) -> dict[str, Any]:
        """Options of the frozen client that has the pace, batches and mode of this method."""
        return {"server_steps": self.server_pace, "client_mode": self.client_mode}

    @property
    def client_passes(self) -> tuple[int, int] | None:
        """Forwards and backprops of a client for each sample it trains on; None: not known."""
        return None

    @property
    def client_mode(self) -> str:
        """Mode of the client half's modules in training: "as_built", or "eval"."""
        return "as_built"

    @property
    def client_schedule(self) -> str:
        """How the client's learning rate goes over the rounds; empty without such a rate."""
        return ""

    @property
    def keeps_client_state(self) -> bool:
        """Whether clients keep something of one round for the next that no checkpoint holds."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class RunConfig:
    """Settings that every method shares.

    Attributes
    ----------
    task : str
        The learning problem.
    method : str
        How it is trained.
    rounds : int
        Rounds to train.
    clients : int
        Clients of the run: partitions of the data, and nodes the server waits for.
    sampled : int
        Clients per round; 0 takes all.
    seed : int
        The only source of randomness of the run.
    batch_size : int
        Samples per mini-batch.
    eval_every : int
        Rounds between evaluations of the whole model; 0 spreads about 20 over the run.
    checkpoint_every : int
        Rounds between checkpoints; 0 means at every evaluation.
    mean : {"uniform", "samples"}
        Whether clients count the same or by the samples they ran in the round.
    aggregator : str
        How what clients send, scalars or weights, is brought together.
    outlier_factor : float
        Smashed data or scalars are refused that are by more than this factor larger than the spread
        of the last rounds' lets expect; 0 refuses none.
    subspace_from : {"auto", "public", "gradients", "noise", "clients"}
        What the directions of ``task.trained=subspace:R`` are of; see docs/trained.md.
    partition : str
        How the training data is divided (`PartitionSpec`); "local" for clients with their own.
    alpha : float
        Concentration of the dirichlet partition: 0.1 is very uneven, 100 close to iid.
    classes_per_client : int
        Classes of a client in the pathological partition.
    validation : float
        Share of the training data, by class, that no client is given: every evaluation measures it.
    smashed : str
        How smashed data travel, in methods that send them (`sfl_flower.wire.encodings`).
    gradients : str
        How cut gradients travel, in methods that send them.
    server_optimizer : {"sgd", "adam", "adamw"}
        Optimiser of the server half.
    server_lr : float
        Learning rate of the server half.
    server_momentum : float
        Momentum of the server's optimiser, where it is sgd.
    server_weight_decay : float
        Weight decay of the server's optimiser.
    server_lr_schedule : {"constant", "linear", "cosine"}
        How server_lr goes over the rounds; the last two end at 0.
    server_lr_warmup : float
        First rounds over which server_lr rises linearly; below 1 it is a share of all rounds.
    timeout : float
        Seconds to wait for the reply to a request.
    wave : int
        Requests without a reply at one time, at most; 0: all of a round, or 64 where `sfl run` or
        `simulate` start Ray.
    join_timeout : float
        Seconds to wait for the nodes at the start.
    patience : int
        Rounds in a row without any usable reply after which the run stops.
    micro_batch : str
        How many samples of a mini-batch a client runs at one time: "all", a number, or the memory
        that they may take ("64MiB"), from which the number follows.
    checkpointing : bool
        Whether clients that run backprop keep what enters each segment of theirs, and run it again.
    client_threads : int
        Threads that torch uses on a client, part of the configuration because sums may depend on
        them; on Ray, the processors a worker takes.
    server_threads : int
        Threads that torch uses on the server.
    client_device : {"cpu", "auto", "cuda"}
        Where clients compute: auto takes a GPU if there is one. A node's own configuration wins.
    server_device : {"cpu", "auto", "cuda"}
        Where the server computes.
    server_precision : {"float32", "bfloat16"}
        What the server half multiplies in while it trains (bfloat16: torch's autocast). Weights,
        sums of gradients, λ as it travels and evaluations are float32 in both.
    server_compile : bool
        Whether the server half trains as a program of torch.compile, made in the first rounds.
    client_gpus : float
        On Ray, the share of a GPU that a worker takes; 0 keeps workers off the GPU.
    """

    task: Annotated[str, Form("a ready-made task, or MODULE:ATTRIBUTE")] = "digits"
    method: Annotated[str, Form("a method, or MODULE:NAME")] = "ho_sfl"
    rounds: Count = 100
    clients: Count = 10
    sampled: Natural = 0
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    batch_size: Count = 32
    eval_every: Natural = 0
    checkpoint_every: Natural = 0
    mean: Annotated[str, Choice(("uniform", "samples"))] = "uniform"
    aggregator: Annotated[str, Form("an aggregator's name")] = "mean"
    outlier_factor: Annotated[float, Range(0, 1e6)] = 4.0
    subspace_from: Annotated[str, Choice(("auto", *SOURCES))] = "auto"
    partition: Annotated[str, Choice((*PARTITIONS, LOCAL))] = "dirichlet"
    alpha: Annotated[float, Form("finite, above 0")] = 0.5
    classes_per_client: Count = 2
    validation: Annotated[float, Range(0, LARGEST)] = 0.0
    smashed: Annotated[str, Form("an encoding's name")] = "float32"
    gradients: Annotated[str, Form("an encoding's name")] = "float32"
    server_optimizer: Annotated[str, Choice(FIRST_ORDER)] = "sgd"
    server_lr: Annotated[float, Range(0)] = 0.05
    server_lr_schedule: Annotated[str, Choice(SCHEDULES)] = "constant"
    server_lr_warmup: Annotated[float, Range(0)] = 0.0
    server_momentum: Momentum = 0.9
    server_weight_decay: Annotated[float, Range(0)] = 0.0
    timeout: Annotated[float, Range(0.001, 10**7)] = 600.0
    wave: Natural = 0
    join_timeout: Annotated[float, Range(0.001, 10**7)] = 120.0
    patience: Count = 5
    micro_batch: Annotated[str, Amount()] = "all"
    checkpointing: bool = False
    client_threads: Count = 1
    server_threads: Count = 1
    client_device: Annotated[str, Choice(DEVICES)] = "cpu"
    server_device: Annotated[str, Choice(DEVICES)] = "cpu"
    server_precision: Annotated[str, Choice(PRECISIONS)] = "float32"
    server_compile: bool = False
    client_gpus: Annotated[float, Range(0, 64)] = 0.0

    def __post_init__(self) -> None:
        check_options(self)
        if self.validation and self.partition == LOCAL:
            raise ConfigError(
                f"validation is {self.validation:g} with partition '{LOCAL}', where the server has "
                "no training data to hold back from; it must be 0."
            )
        if self.client_gpus and self.client_device == "cpu":
            raise ConfigError(
                f"client_gpus is {self.client_gpus:g} with client_device 'cpu', which uses none; "
                "it must be 0, or client_device auto or cuda."
            )
        if self.sampled > self.clients:
            raise ConfigError(
                f"sampled is {self.sampled} but there are only {self.clients} clients; it must be "
                f"in [1, {self.clients}], or 0 for all."
            )
        self.partition_spec()

    @property
    def cohort(self) -> int:
        """Clients per round."""
        return self.sampled or self.clients

    @property
    def samples_at_once(self) -> int:
        """Most samples that a client runs at one time; 0 for all of a mini-batch.

        Raises
        ------
        ConfigError
            If `micro_batch` is a budget, from which a run makes a number before it begins.
        """
        if Amount.budget(self.micro_batch):
            raise ConfigError(
                f"micro_batch is '{self.micro_batch}' where no run measures what that allows; give "
                "a number of samples, or start it with simulate or an app."
            )
        found = Amount.samples(self.micro_batch)
        # A last mini-batch may hold one sample more than the others.
        return found if found <= self.batch_size else 0

    @property
    def model_seed(self) -> int:
        """Seed of the model's first weights, see `SplitTask.build`; clients are told it."""
        return model_seed(self.seed)

    def client_key(self, partition: int) -> str:
        """Return what everything that a client draws follows from; see `client_key`."""
        return client_key(self.seed, partition)

    @property
    def evaluation_period(self) -> int:
        """Rounds between evaluations."""
        return self.eval_every or max(1, self.rounds // 20)

    @property
    def checkpoint_period(self) -> int:
        """Rounds between checkpoints."""
        return self.checkpoint_every or self.evaluation_period

    @property
    def server_schedule(self) -> str:
        """How server_lr goes over the rounds, as words."""
        return schedule_text(self.server_lr_schedule, self.server_lr_warmup)

    def server_rate(self, round: int) -> float:
        """Return the learning rate of the server half in a round."""
        schedule, warmup = self.server_lr_schedule, self.server_lr_warmup
        return scheduled(schedule, self.server_lr, round, self.rounds, warmup)

    def partition_spec(self) -> PartitionSpec | None:
        """Return how the training data is divided, None where clients bring their own."""
        if self.partition == LOCAL:
            return None
        return PartitionSpec(
            name=self.partition,
            clients=self.clients,
            alpha=self.alpha,
            seed=division_seed(self.seed),
            classes_per_client=self.classes_per_client,
            validation=self.validation,
        )

    def partition_text(self) -> str:
        """Return the partitioning as the text that travels to the clients."""
        spec = self.partition_spec()
        if spec is None:
            return LOCAL
        fields = {k: v for k, v in asdict(spec).items() if v or k != "validation"}
        return json.dumps(fields, sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Return the names of the shared settings."""
        return frozenset(field.name for field in fields(cls))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Build the configuration from a mapping; see `read_fields`."""
        return read_fields(cls, values, "a run")
