"""The configuration of a run: typed, frozen, one source, and unknown keys are errors.

A run has settings that every method shares (`RunConfig`) and settings of its method (a dataclass
beside the method's strategy).  Both are read from flat ``key=value`` pairs, from the command line,
from Flower's run configuration or from keyword arguments; ``-`` and ``_`` are the same in a key.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from sfl_flower.data import LARGEST, PARTITIONS, PartitionSpec
from sfl_flower.errors import ConfigError
from sfl_flower.training.optim import FIRST_ORDER
from sfl_flower.training.schedules import SCHEDULES, schedule_text, scheduled

__all__ = [
    "LOCAL",
    "RunConfig",
    "Settings",
    "check_choice",
    "check_range",
    "nearest",
    "read_fields",
    "unknown",
]

LOCAL = "local"
"""Partition name for clients that bring data of their own instead of a share of the task's."""


def unknown(kind: str, name: object, legal: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not among the legal ones."""
    names = sorted(legal)
    near = nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return ConfigError(f"Unknown {kind} '{name}'; legal are {', '.join(names)}.{hint}")


def nearest(name: object, legal: Iterable[str]) -> str:
    """Return the legal name that is most like this one, whatever its case; "" if none is."""
    names = {known.lower().replace("-", "_"): known for known in legal}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), names, n=1)
    return names[near[0]] if near else ""


def check_choice(name: str, value: str, legal: Iterable[str]) -> None:
    """Raise `ConfigError` unless the value of this option is one of the legal ones."""
    if value not in (names := tuple(legal)):
        raise ConfigError(f"{name} is '{value}'; it must be one of {', '.join(names)}.")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise `ConfigError` unless low <= value <= high."""
    if not low <= value <= high or math.isinf(value):
        raise ConfigError(f"{name} is {value}; it must be {legal_range(low, high, type(value))}.")


def legal_range(low: float, high: float, kind: type[Any]) -> str:
    """Return a range in words: whole numbers are never called finite, nor rounded."""
    if kind is int:
        low, high = (bound if math.isinf(bound) else int(bound) for bound in (low, high))
        return f"at least {low}" if math.isinf(high) else f"in [{low}, {high}]"
    return f"finite, at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Turn a text from the command line, or a number from TOML, into the type of a field.

    Raises
    ------
    ConfigError
        If it cannot be one.
    """
    if isinstance(kind, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    try:
        if kind is bool:
            if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
                return value.lower() in ("true", "1")
            if isinstance(value, bool):
                return value
        elif kind is int:
            if not isinstance(value, bool) and int(value) == float(value):
                return int(value)
        elif kind is float:
            if not isinstance(value, bool):
                return float(value)
        elif kind is str and isinstance(value, str):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise ConfigError(f"{name} is {value!r}; it must be {names.get(kind, kind.__name__)}.")


T = typing.TypeVar("T")


def read_fields(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a settings dataclass from a mapping.

    Raises
    ------
    ConfigError
        If a key is no field of the dataclass, or a value has the wrong type or range.
    """
    kinds = typing.get_type_hints(cls)
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    read = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"option of {where}", key, known)
        read[name] = coerce(name, value, kinds[name])
    return cls(**read)


@dataclass(frozen=True)
class Settings:
    """Base of a method's own settings; a frozen dataclass whose fields are the options."""

    def __post_init__(self) -> None:
        """Check the options; a subclass that checks its own calls this first."""

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
    task, method : str
        Names of a ready-made task and of a method.
    rounds : int
        Rounds to train.
    clients : int
        Clients of the run: partitions of the data, and nodes the server waits for.
    sampled : int
        Clients per round; 0 takes all.
    seed : int
        The only source of randomness of the run, in [0, 2**63).
    batch_size : int
        Samples per mini-batch.
    eval_every : int
        Rounds between evaluations of the whole model; 0 spreads about 20 over the run.
    checkpoint_every : int
        Rounds between checkpoints; 0 means at every evaluation.
    mean : {"uniform", "samples"}
        Whether clients count the same or by the samples they ran in the round.
    aggregator : str
        How what clients send, scalars or weights, is brought together: a name in
        `sfl_flower.server.aggregate.AGGREGATORS`.
    partition, alpha, classes_per_client : str, float, int
        How the training data is divided, see `PartitionSpec`; "local" for clients with their own.
    validation : float
        Share of the training data that no client is given and every evaluation measures too, class
        by class, as ``validation_...``; in [0, 0.5].
    smashed, gradients : {"float32", "float16"}
        How smashed data and cut gradients travel, in methods that send them.
    server_optimizer : {"sgd", "adam", "adamw"}
        Optimiser of the server half.
    server_lr, server_momentum, server_weight_decay : float
        Its settings; momentum is for SGD.
    server_lr_schedule : {"constant", "linear", "cosine"}
        How server_lr goes over the rounds; the last two end at 0.
    server_lr_warmup : float
        First rounds over which server_lr rises linearly; below 1 it is a share of all rounds.
    timeout : float
        Seconds to wait for the replies of an exchange.
    join_timeout : float
        Seconds to wait for the nodes at the start.
    patience : int
        Rounds in a row without any usable reply after which the run stops.
    client_threads, server_threads : int
        Threads torch uses on each side, part of the configuration because sums may depend on it.
    """

    task: str = "digits"
    method: str = "ho_sfl"
    rounds: int = 100
    clients: int = 10
    sampled: int = 0
    seed: int = 0
    batch_size: int = 32
    eval_every: int = 0
    checkpoint_every: int = 0
    mean: str = "uniform"
    aggregator: str = "mean"
    partition: str = "dirichlet"
    alpha: float = 0.5
    classes_per_client: int = 2
    validation: float = 0.0
    smashed: str = "float32"
    gradients: str = "float32"
    server_optimizer: str = "sgd"
    server_lr: float = 0.05
    server_lr_schedule: str = "constant"
    server_lr_warmup: float = 0.0
    server_momentum: float = 0.9
    server_weight_decay: float = 0.0
    timeout: float = 600.0
    join_timeout: float = 120.0
    patience: int = 5
    client_threads: int = 1
    server_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("rounds", "clients", "batch_size", "patience", "client_threads"):
            check_range(name, getattr(self, name), 1)
        for name in ("sampled", "eval_every", "checkpoint_every", "server_weight_decay"):
            check_range(name, getattr(self, name), 0)
        check_range("server_threads", self.server_threads, 1)
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_range("server_lr", self.server_lr, 0)
        check_choice("server_lr_schedule", self.server_lr_schedule, SCHEDULES)
        check_range("server_lr_warmup", self.server_lr_warmup, 0)
        check_range("server_momentum", self.server_momentum, 0, 0.9999)
        check_range("timeout", self.timeout, 0.001, 10**7)
        check_range("join_timeout", self.join_timeout, 0.001, 10**7)
        check_choice("mean", self.mean, ("uniform", "samples"))
        check_choice("partition", self.partition, (*PARTITIONS, LOCAL))
        check_choice("server_optimizer", self.server_optimizer, FIRST_ORDER)
        check_range("validation", self.validation, 0, LARGEST)
        if self.validation and self.partition == LOCAL:
            raise ConfigError(
                f"validation is {self.validation:g} with partition '{LOCAL}', where the server has "
                "no training data to hold back from; it must be 0."
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
            seed=self.seed,
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
