"""Dividing a training set among clients, with the partitioners of ``flwr-datasets``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sfl_flower.data.labels import row_labels
from sfl_flower.data.samples import Samples
from sfl_flower.data.seeding import derive, generator
from sfl_flower.data.validation import LARGEST, hold_back
from sfl_flower.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["PARTITIONS", "PartitionSpec", "divided", "partition"]

PARTITIONS = ("iid", "dirichlet", "pathological", "shard", "linear", "square", "exponential")
"""Names that `PartitionSpec` knows."""

_ATTEMPTS = 10
_REMEDY = {"dirichlet": "a larger alpha, ", "pathological": "more classes a client, "}


@dataclass(frozen=True)
class PartitionSpec:
    """How a training set is divided.

    Parameters
    ----------
    name : str
        One of `PARTITIONS`. ``iid``: equal random shares. ``dirichlet``: each class is dealt out by
        proportions drawn from a Dirichlet distribution. ``pathological``: every client gets exactly
        `classes_per_client` classes. ``shard``: sorted by label, cut into equal shards,
        `shards_per_client` each. ``linear``, ``square``, ``exponential``: random shares whose sizes
        grow with the client's number i as i, i**2, exp(i).
    clients : int
        How many partitions, at least 1.
    alpha : float
        Dirichlet concentration, above 0: large is close to IID, 0.1 is very uneven.
    seed : int
        Seed of the division, any integer.
    classes_per_client : int
        For ``pathological``, at least 1.
    shards_per_client : int
        For ``shard``, at least 1.
    min_samples : int
        The fewest samples a client may hold, at least 1. ``dirichlet`` draws up to ten times until
        it is so; every other division either has that many or is an error.
    validation : float
        Share of the rows that no client is given, see `hold_back`; in [0, 0.5].

    Raises
    ------
    ConfigError
        A field is out of its range.
    """

    name: str = "dirichlet"
    clients: int = 10
    alpha: float = 0.5
    seed: int = 0
    classes_per_client: int = 2
    shards_per_client: int = 2
    min_samples: int = 1
    validation: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in PARTITIONS:
            close = get_close_matches(str(self.name), PARTITIONS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(
                f"Unknown partition {self.name!r}{hint}; choose one of {', '.join(PARTITIONS)}."
            )
        for field in ("clients", "classes_per_client", "shards_per_client", "min_samples"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"The partition's {field} is {value!r}; it must be a whole number, at least 1."
                )
        alpha: object = self.alpha
        if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
            raise ConfigError(
                f"The partition's alpha is {alpha!r}; it must be a finite number above 0 "
                "(0.1 is very uneven, 100 is close to IID)."
            )

        held: object = self.validation
        if not isinstance(held, int | float) or not 0 <= held <= LARGEST:
            raise ConfigError(f"validation is {held!r}; it must be in [0, {LARGEST:g}].")

    @property
    def by_class(self) -> bool:
        """Whether the division looks at the labels."""
        return self.name in ("dirichlet", "pathological", "shard")

    def __str__(self) -> str:
        options = {
            "dirichlet": f", alpha {self.alpha}",
            "pathological": f", {self.classes_per_client} classes a client",
            "shard": f", {self.shards_per_client} shards a client",
        }
        return f"{self.name}{options.get(self.name, '')}, seed {self.seed}"


def divided(
    samples: Samples, spec: PartitionSpec, ignore: int | None
) -> list[npt.NDArray[np.int64]]:
    """Divide a set among clients, by the labels of its samples that count; see `partition`."""
    return partition(spec, row_labels(samples.y.numpy(), ignore, spec.by_class))


def partition(spec: PartitionSpec, labels: npt.ArrayLike) -> list[npt.NDArray[np.int64]]:
    """Divide the rows of a data set among clients.

    Parameters
    ----------
    spec : PartitionSpec
        How to divide.
    labels : array of int, shape [N]
        The label of every row.

    Returns
    -------
    list of ndarray of int64
        One ascending array of row numbers for each client, disjoint; together all rows that are
        not held back, unless ``pathological`` gives a class to nobody or ``shard`` leaves a
        remainder.

    Raises
    ------
    DataError
        A client is left with fewer than `min_samples` rows, or the partitioner cannot divide so.
    """
    y = np.asarray(labels)
    if y.ndim != 1:
        raise DataError(f"Partitions need one label a row, shape [N]; these are {list(y.shape)}.")
    if not spec.validation:
        return _partition(spec, y)
    trained, _ = hold_back(y, spec.validation, spec.seed)
    return [trained[rows] for rows in _partition(spec, y[trained])]


def _partition(spec: PartitionSpec, y: npt.NDArray[Any]) -> list[npt.NDArray[np.int64]]:
    if len(y) < spec.clients * spec.min_samples:
        raise DataError(
            f"{len(y)} training samples cannot give each of {spec.clients} clients at least "
            f"{spec.min_samples}; use fewer clients or more data."
        )
    classes = len(np.unique(y))
    if spec.name == "pathological" and spec.classes_per_client > classes:
        raise DataError(
            f"A client cannot hold {spec.classes_per_client} classes: the training set has "
            f"{classes}; use a smaller classes_per_client."
        )
    if spec.name == "shard" and spec.clients * spec.shards_per_client > len(y):
        raise DataError(
            f"{len(y)} training samples cannot be cut into {spec.clients} x "
            f"{spec.shards_per_client} shards; use fewer clients or shards_per_client."
        )
    parts = []
    for attempt in range(_ATTEMPTS if spec.name == "dirichlet" else 1):
        parts = _divide(spec, y, derive("partition", spec.seed, attempt) % 2**63)
        if min(len(part) for part in parts) >= spec.min_samples:
            return parts
    small = [client for client, part in enumerate(parts) if len(part) < spec.min_samples]
    raise DataError(
        f"Client {small[0]} has {len(parts[small[0]])} samples in the partition ({spec}), "
        f"{len(small)} of {spec.clients} clients have too few; each needs at least "
        f"{spec.min_samples}. Use fewer clients, {_REMEDY.get(spec.name, '')}another seed or more "
        "data."
    )


def _divide(
    spec: PartitionSpec, labels: npt.NDArray[Any], seed: int
) -> list[npt.NDArray[np.int64]]:
    from datasets import Dataset

    # Some partitioners take rows as they come and have no seed; shuffled rows are right for all.
    rows = generator("rows", seed).permutation(len(labels))
    data = Dataset.from_dict({"label": labels[rows], "row": rows})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are checked by the caller
            partitioner = _partitioner(spec, seed)
            partitioner.dataset = data
            return [
                np.sort(partitioner.load_partition(client).with_format("numpy")["row"][:])
                for client in range(spec.clients)
            ]
    except ValueError as error:
        raise DataError(
            f"{len(rows)} samples cannot be divided among {spec.clients} clients ({spec}); "
            f"flwr-datasets says: {error} Use fewer clients, more data or another partition."
        ) from error


def _partitioner(spec: PartitionSpec, seed: int) -> Partitioner:
    # Importing flwr_datasets takes seconds; only a process that divides data pays for it.
    from flwr_datasets import partitioner as flwr

    n = spec.clients
    if spec.name == "iid":
        return flwr.IidPartitioner(n)
    if spec.name == "linear":
        return flwr.LinearPartitioner(n)
    if spec.name == "square":
        return flwr.SquarePartitioner(n)
    if spec.name == "exponential":
        return flwr.ExponentialPartitioner(n)
    common: dict[str, Any] = {"num_partitions": n, "partition_by": "label", "seed": seed}
    if spec.name == "pathological":
        return flwr.PathologicalPartitioner(
            **common,
            num_classes_per_partition=spec.classes_per_client,
            class_assignment_mode="first-deterministic",  # as in arXiv 2102.02079
        )
    if spec.name == "shard":
        return flwr.ShardPartitioner(**common, num_shards_per_partition=spec.shards_per_client)
    return flwr.DirichletPartitioner(**common, alpha=float(spec.alpha), min_partition_size=0)
