"""What a client remembers between two messages.

Small tensors live in Flower's ``Context.state``.  Larger ones would be copied with every message,
and recent Flower drops a large state silently, so they live in a file of the node and the state
holds its name.  Either way what is read back is checked, and whatever is lost is asked for again:
the store is a cache, never the truth.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from torch import nn

from sfl_flower.errors import ConfigError, SflError
from sfl_flower.node.directory import (
    arrays_digest,
    own_directory,
    read_arrays,
    state_root,
    write_arrays,
)
from sfl_flower.split import carried_state, load_carried
from sfl_flower.wire import unpack_state
from sfl_flower.wire.weights import Carried, packed_digest

__all__ = [
    "LABEL_SECRET",
    "CarriedLostError",
    "NodeStore",
    "keep_carried",
    "load_kept",
    "state_limit",
]

STATE_LIMIT = 1 << 20
"""Largest group of arrays kept in ``Context.state``, in bytes, unless `SFL_STATE_LIMIT` is set."""
LABEL_SECRET = "label secret"
"""Name of what decides which labels a node tells; it is there once they were told."""
_CARRIED = "carried"
_SWEPT = "swept"
"""Names in a context's state of which nothing is left in files from an earlier context."""


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
        self._directory = state_root() / f"run-{context.run_id}"
        self._limit = state_limit() if limit is None else limit

    def put(
        self, name: str, arrays: Mapping[str, np.ndarray], content: str = "", groups: int = 1
    ) -> None:
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
        groups : int
            How many groups of this size are remembered at one time, together within the limit.
        """
        # What is shared may be damaged; whoever puts has the arrays and can replace it.
        if content and self.share(name, content) and self.get(name) is not None:
            self._remove_orphans(name)
            return
        old, new = self._file(name), None
        if groups * sum(array.nbytes for array in arrays.values()) <= self._limit:
            self._state[name] = ArrayRecord(
                {key: Array(np.asarray(value, order="C")) for key, value in arrays.items()}
            )
        else:
            new = self._path(name, content, arrays_digest(arrays))
            own_directory(self._directory)
            write_arrays(new, arrays)
            self._state[name] = ConfigRecord({"file": new.name})
            self._remove_orphans(name)
        if old is not None and old != new:
            old.unlink(missing_ok=True)

    def share(self, name: str, content: str) -> bool:
        """Remember what another node of this machine holds; False where none has that content.

        Parameters
        ----------
        name, content : str
            As for `put`.
        """
        if not self._directory.exists():
            return False
        own_directory(self._directory)
        old = self._file(name)
        for twin in self._directory.glob(f"{name}-{content}-*.safetensors"):
            new = self._path(name, content, _digest(twin))
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
        return None if path is None else read_arrays(path, _digest(path))

    def recover(self, name: str) -> dict[str, np.ndarray] | None:
        """Return a group as `get`, or what this node kept in a file before it was started again.

        Flower's context goes with the SuperNode.  One that comes back with its key has its id
        again, and with the id, in the same run, its files: the newest that is whole is
        remembered anew, and those beside it are removed.
        """
        if name in self._state or not self._directory.exists():
            return self.get(name)
        own_directory(self._directory)
        found = None
        own = self._own_files(name)
        for path in sorted(own, key=lambda path: (path.stat().st_mtime_ns, path.name))[::-1]:
            found = found or read_arrays(path, _digest(path))
            if found is not None and name not in self._state:
                self._state[name] = ConfigRecord({"file": path.name})
            else:
                path.unlink(missing_ok=True)
        return found

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

    def own_file(self, name: str) -> Path:
        """Return a path that this node alone writes to; its directory is there."""
        own_directory(self._directory)
        return self._directory / f"{name}-{self._node}.bin"

    def _file(self, name: str) -> Path | None:
        record = self._state.config_records.get(name)
        file = None if record is None else record.get("file")
        return self._directory / Path(file).name if isinstance(file, str) else None

    def _own_files(self, name: str) -> list[Path]:
        return list(self._directory.glob(f"{name}-*-{self._node}.safetensors"))

    def _remove_orphans(self, name: str) -> None:
        """Remove what the node kept under a name before it was started again: nothing names it.

        Once in a context is enough, for what a context puts it removes itself.
        """
        record = self._state.config_records.get(_SWEPT)
        swept = [] if record is None else str(record["names"]).split("|")
        if name in swept:
            return
        kept = self._file(name)
        for path in self._own_files(name):
            if path != kept:
                path.unlink(missing_ok=True)
        self._state[_SWEPT] = ConfigRecord({"names": "|".join([*swept, name])})

    def _path(self, name: str, content: str, digest: str) -> Path:
        # The digest of what was written stands in the name, and the name in Flower's state: a
        # file that was altered is a lost one, and so is every link to it.
        return self._directory / f"{name}-{content or 'own'}-{digest}-{self._node}.safetensors"


def _digest(path: Path) -> str:
    """Return the digest in a file's name, one that nothing has where there is none."""
    parts = path.stem.rsplit("-", 2)
    return parts[1] if len(parts) == 3 else "none"


class CarriedLostError(SflError):
    """The node does not hold what a request names; the server is to send the whole request."""


def keep_carried(store: NodeStore, carried: Carried | None) -> str:
    """Remember what came along; return the name of what the request means, empty for nothing."""
    if carried is None:
        return ""
    if carried.arrays:
        store.put(_CARRIED, carried.arrays, content=carried.digest)
    return carried.digest


def load_kept(store: NodeStore, digest: str, module: nn.Module) -> None:
    """Load what a node remembers into a client half or a whole model; nothing for no name.

    Raises
    ------
    CarriedLostError
        The node remembers nothing of this name.
    WireError
        It belongs to another model.
    """
    if not digest:
        return
    arrays = store.get(_CARRIED)
    if arrays is None or packed_digest(arrays) != digest:
        raise CarriedLostError(
            f"The node lost what it was sent once (digest {digest[:8]}); it must be sent again."
        )
    load_carried(module, unpack_state(arrays, carried_state(module)))
