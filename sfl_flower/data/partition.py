"""Dividing a training set among clients, with the partitioners of ``flwr-datasets``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sfl_flower.data.seeding import derive, generator
from sfl_flower.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["PARTITIONS", "PartitionSpec", "partition"]

PARTITIONS = ("iid", "dirichlet", "pathological", "shard", "linear", "square", "exponential")
"""Names that `PartitionSpec` knows."""


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
        The fewest samples a client may hold, at least 1.

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

    def __post_init__(self) -> None:
        if self.name not in PARTITIONS:
            raise ConfigError(
                f"Unknown partition {self.name!r}; choose one of {', '.join(PARTITIONS)}."
            )
        for field in ("clients", "classes_per_client", "shards_per_client", "min_samples"):
            if getattr(self, field) < 1:
                raise ConfigError(
                    f"The partition's {field} is {getattr(self, field)}; it must be at least 1."
                )
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(
                f"The partition's alpha is {self.alpha}; it must be a finite number above 0 "
                "(0.1 is very uneven, 100 is close to IID)."
            )


def _build(spec: PartitionSpec) -> Partitioner:
    # Importing flwr_datasets takes seconds; only a process that divides data pays for it.
    from flwr_datasets import partitioner as flwr

    n = spec.clients
    seeded: dict[str, Any] = {
        "num_partitions": n,
        "partition_by": "label",
        "seed": derive("partition", spec.seed) % 2**63,
    }
    builders: dict[str, Callable[[], Partitioner]] = {
        "iid": lambda: flwr.IidPartitioner(n),
        "dirichlet": lambda: flwr.DirichletPartitioner(
            **seeded, alpha=float(spec.alpha), min_partition_size=spec.min_samples
        ),
        "pathological": lambda: flwr.PathologicalPartitioner(
            **seeded,
            num_classes_per_partition=spec.classes_per_client,
            class_assignment_mode="first-deterministic",
        ),
        "shard": lambda: flwr.ShardPartitioner(
            **seeded, num_shards_per_partition=spec.shards_per_client
        ),
        "linear": lambda: flwr.LinearPartitioner(n),
        "square": lambda: flwr.SquarePartitioner(n),
        "exponential": lambda: flwr.ExponentialPartitioner(n),
    }
    return builders[spec.name]()


def partition(
    spec: PartitionSpec, labels: npt.ArrayLike
) -> list[npt.NDArray[np.int64]]:
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
        One ascending array of row numbers per client, disjoint; together all rows, unless
        ``pathological`` leaves a class to nobody or ``shard`` has a remainder.

    Raises
    ------
    DataError
        Fewer rows than clients, a client with fewer than `min_samples` rows, or a division that the
        partitioner cannot make.
    """
    y = np.asarray(labels)
    if y.ndim != 1:
        raise DataError(f"Partitions need one label a row, shape [N]; these are {list(y.shape)}.")
    if len(y) < spec.clients * spec.min_samples:
        raise DataError(
            f"{len(y)} training samples cannot give {spec.clients} clients at least "
            f"{spec.min_samples} each; use fewer clients or more data."
        )
    rows = np.arange(len(y))
    if spec.name in ("iid", "linear", "square", "exponential"):
        # These four take rows as they come and have no seed of their own.
        rows = generator("partition", spec.seed).permutation(len(y))
    parts = _divide(spec, y[rows], rows)
    for client, part in enumerate(parts):
        if len(part) < spec.min_samples:
            raise DataError(
                f"Client {client} of {spec.clients} gets {len(part)} samples from {spec}; at least "
                f"{spec.min_samples} needed. Use fewer clients, a larger alpha or another seed."
            )
    return parts


def _divide(
    spec: PartitionSpec, labels: npt.NDArray[Any], rows: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    from datasets import Dataset

    data = Dataset.from_dict({"label": labels, "row": rows})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            partitioner = _build(spec)
            partitioner.dataset = data
            return [
                np.sort(np.asarray(partitioner.load_partition(i)["row"], dtype=np.int64))
                for i in range(spec.clients)
            ]
    except ValueError as error:
        raise DataError(
            f"{len(rows)} samples cannot be divided by {spec}: {error} Use fewer clients, a larger "
            "alpha, a smaller min_samples or another seed."
        ) from error
