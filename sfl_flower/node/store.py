"""What a client remembers between two messages.

Small tensors live in Flower's ``Context.state``.  Larger ones would be copied with every message,
and recent Flower drops a large state silently, so they live in a file of the node and the state
holds its name.  Either way what is read back is checked, and whatever is lost is asked for again:
the store is a cache, never the truth.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sfl_flower.errors import ConfigError

__all__ = ["NodeStore", "state_limit", "state_root"]

STATE_LIMIT = 1 << 20
"""Largest group of arrays kept in ``Context.state``, in bytes, unless `SFL_STATE_LIMIT` is set."""
KEEP_SECONDS = 7 * 24 * 3600
"""Directories of other runs are removed when nothing in them changed for this long."""


def state_root() -> Path:
    """Return the node-local directory for large state: `SFL_STATE_DIR`, or a temporary one."""
    named = os.environ.get("SFL_STATE_DIR")
    if named:
        return Path(named)
    return Path(tempfile.gettempdir()) / f"sfl_flower-{getpass.getuser()}"


def state_limit() -> int:
    """Return the largest group of arrays kept in ``Context.state``, in bytes."""
    named = os.environ.get("SFL_STATE_LIMIT", "")
    if not named:
        return STATE_LIMIT
    if not named.isdecimal():
        raise ConfigError(
            f"SFL_STATE_LIMIT is {named!r}; it must be a whole number of bytes, at least 0."
        )
    return int(named)


class NodeStore:
    """Named groups of arrays of one node in one run.

    Parameters
    ----------
    context : Context
        Flower's context of the node; its state is written to.
    limit : int, optional
        Largest group kept in the context, in bytes; `SFL_STATE_LIMIT` or 1 MiB when left out.
    """

    def __init__(self, context: Context, limit: int | None = None) -> None:
        self._state = context.state
        self._node = context.node_id
        self._directory = state_root() / str(context.run_id)
        self._limit = state_limit() if limit is None else limit

    def put(self, name: str, arrays: Mapping[str, np.ndarray], content: str = "") -> None:
        """Remember a group of arrays.

        Parameters
        ----------
        name : str
            Name of the group; an older group of that name is forgotten.
        arrays : Mapping[str, numpy.ndarray]
            The arrays.
        content : str
            A digest of the arrays, if there is one: nodes of one machine that hold the same
            content then share one file.
        """
        # What is shared may be damaged; whoever puts has the arrays and can replace it.
        if content and self.share(name, content) and self.get(name) is not None:
            return
        old, new = self._file(name), None
        if sum(array.nbytes for array in arrays.values()) <= self._limit:
            self._state[name] = ArrayRecord(
                {key: Array(np.ascontiguousarray(value)) for key, value in arrays.items()}
            )
        else:
            new = self._path(name, content)
            self._write(new, arrays)
            self._state[name] = ConfigRecord({"file": new.name})
        if old is not None and old != new:
            old.unlink(missing_ok=True)

    def share(self, name: str, content: str) -> bool:
        """Remember what another node of this machine holds; False where none has that content.

        Parameters
        ----------
        name, content : str
            As for `put`.
        """
        old, new = self._file(name), self._path(name, content)
        for twin in self._directory.glob(f"{name}-{content}-*.safetensors"):
            if twin == new:
                continue  # what this node holds already may be damaged
            # A hard link is a reference that the file system counts: the content goes with the
            # last node that drops it.
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
                os.link(twin, new)
                self._state[name] = ConfigRecord({"file": new.name})
                if old is not None and old != new:
                    old.unlink(missing_ok=True)
                return True
        return False

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """Return a group of arrays, None where it was never put or is lost."""
        if name in self._state.array_records:
            record = self._state.array_records[name]
            return {key: array.numpy() for key, array in record.items()}
        path = self._file(name)
        if path is None:
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            return None

    def drop(self, name: str) -> None:
        """Forget a group of arrays."""
        path = self._file(name)
        if path is not None:
            path.unlink(missing_ok=True)
        if name in self._state:
            del self._state[name]

    def put_text(self, name: str, values: Mapping[str, int | str]) -> None:
        """Remember a few numbers and texts."""
        self._state[name] = ConfigRecord(dict(values))

    def get_text(self, name: str) -> dict[str, int | str]:
        """Return a few numbers and texts, empty where they were never put or are lost."""
        record = self._state.config_records.get(name)
        values = {} if record is None else dict(record)
        return {k: v for k, v in values.items() if isinstance(v, (int, str))}

    def _file(self, name: str) -> Path | None:
        record = self._state.config_records.get(name)
        file = None if record is None else record.get("file")
        return self._directory / Path(file).name if isinstance(file, str) else None

    def _path(self, name: str, content: str) -> Path:
        return self._directory / f"{name}-{content or 'own'}-{self._node}.safetensors"

    def _write(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        if not self._directory.exists():
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_old(self._directory)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, partial)
        os.replace(partial, path)


def _remove_old(current: Path) -> None:
    for directory in current.parent.iterdir():
        with contextlib.suppress(OSError):
            idle = time.time() - directory.stat().st_mtime
            if directory != current and idle > KEEP_SECONDS:
                shutil.rmtree(directory)
