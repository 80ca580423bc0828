"""Each client's rows of the training set, computed once a machine instead of once a process.

Dividing a data set needs ``flwr-datasets``, which takes seconds to import; a deployed client is a
new process with every message.  The rows are kept beside the clients' state, under a digest of
everything they follow from, and checked when they are read back.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sfl_flower.data import PartitionSpec
from sfl_flower.node.store import state_root
from sfl_flower.task import SplitTask

__all__ = ["divide"]

FORMAT = 1
"""Raised whenever `partition` divides otherwise than before."""

Rows = list[npt.NDArray[np.int64]]


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
            rows = task.compute_rows(spec)
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
    try:
        kept = load_file(path)
        rows, ends = kept["rows"], kept["ends"]
    except (OSError, SafetensorError, KeyError):
        return None
    if rows.dtype != np.int64 or rows.ndim != 1 or ends.dtype != np.int64:
        return None
    if ends.shape != (clients,) or (np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(rows):
        return None
    if len(rows) and (rows.min() < 0 or rows.max() >= samples or len(np.unique(rows)) < len(rows)):
        return None
    return np.split(rows, ends[:-1])


def _write(path: Path, rows: Rows) -> None:
    arrays = {"rows": np.concatenate(rows), "ends": np.cumsum([len(part) for part in rows])}
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    # Without a place to write, every process divides for itself.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_file({name: array.astype(np.int64) for name, array in arrays.items()}, partial)
        os.replace(partial, path)
