"""Each client's rows of the training set, computed once a machine instead of once a process.

Dividing a data set needs ``flwr-datasets``, which takes seconds to import; a deployed client is a
new process with every message.  The rows are kept beside the clients' state, under a digest of
everything they follow from, and checked when they are read back.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sfl_flower.data import PartitionSpec, divided
from sfl_flower.errors import ConfigError, SflError
from sfl_flower.node.directory import (
    arrays_digest,
    check_owner,
    own_directory,
    read_arrays,
    state_root,
    write_arrays,
)
from sfl_flower.task import SplitTask

__all__ = ["divide", "read_spec"]

FORMAT = 2
"""Raised whenever `partition` divides otherwise than before, or the file holds other arrays."""

Rows = list[npt.NDArray[np.int64]]


def read_spec(text: str) -> PartitionSpec:
    """Return the division that a request names.

    Raises
    ------
    ConfigError
        If it names none.
    """
    try:
        return PartitionSpec(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The partitioning '{text[:200]}' cannot be read ({error}); it must be the JSON of a "
            "PartitionSpec or 'local'."
        ) from error


def divide(task: SplitTask, spec: PartitionSpec) -> None:
    """Make `task.client_rows(spec)` known to this process, from the node's disk where it is there.

    Parameters
    ----------
    task : SplitTask
        Whose training set is divided.
    spec : PartitionSpec
        How.

    Raises
    ------
    DataError
        The training set cannot be divided so.
    """

    def make() -> Rows:
        labels = task.samples("train").y.numpy()
        path = _file(spec, labels)
        rows = _read(path, spec.clients, len(labels))
        if rows is None:
            rows = divided(task.samples("train"), spec, task.ignore_label)
            _write(path, rows)
        return rows

    task.memo(("rows", spec), make)


def _file(spec: PartitionSpec, labels: npt.NDArray[np.int64]) -> Path:
    source = {"version": FORMAT, "flwr-datasets": metadata.version("flwr-datasets"), **asdict(spec)}
    name = blake2b(json.dumps(source, sort_keys=True).encode(), digest_size=16)
    name.update(labels.tobytes())
    return state_root() / "partitions" / f"{name.hexdigest()}.safetensors"


def _read(path: Path, clients: int, samples: int) -> Rows | None:
    """Return the rows of a file, None where there is none or it cannot be what was written."""
    check_owner(path.parent)
    kept = read_arrays(path)
    if kept is None or kept.keys() != {"rows", "ends", "digest"}:
        return None
    digest = kept.pop("digest")
    rows, ends = kept["rows"], kept["ends"]
    if digest.tobytes().hex() != arrays_digest(kept):
        return None
    if rows.dtype != np.int64 or rows.ndim != 1 or ends.dtype != np.int64:
        return None
    if ends.shape != (clients,) or (np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(rows):
        return None
    if len(rows) and (rows.min() < 0 or rows.max() >= samples or len(np.unique(rows)) < len(rows)):
        return None
    return np.split(rows, ends[:-1])


def _write(path: Path, rows: Rows) -> None:
    ends = np.cumsum([len(part) for part in rows])
    arrays = {"rows": np.concatenate(rows).astype(np.int64), "ends": ends.astype(np.int64)}
    digest = np.frombuffer(bytes.fromhex(arrays_digest(arrays)), np.uint8)
    # Without a place to write, every process divides for itself.
    with contextlib.suppress(SflError):
        own_directory(path.parent)
        write_arrays(path, {**arrays, "digest": digest})
