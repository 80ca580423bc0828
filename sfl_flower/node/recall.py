"""What a client last sent of each of its samples, in a file of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from sfl_flower.errors import DataError
from sfl_flower.node.node import Node
from sfl_flower.wire.encodings import encoding_of
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest
from sfl_flower.wire.recall import NEVER, changed_samples, memory_digest, rows_of_round

__all__ = ["SampleMemory", "in_brief"]


class SampleMemory:
    """Smashed data of samples as they arrived at the server, each with its round.

    A sample takes 12 bytes and 4 for each number of its smashed data.  A row that was damaged is
    one that was never written, and so is every row of a file that is lost.

    Parameters
    ----------
    path : Path
        The file, in an `own_directory`.
    held : int
        Samples of the client.
    size : int
        Numbers of a sample's smashed data.

    Raises
    ------
    DataError
        If the file cannot be made or written.
    """

    def __init__(self, path: Path, held: int, size: int) -> None:
        row = np.dtype([("round", "<i8"), ("check", "<u4"), ("z", "<f4", (size,))])
        try:
            if not path.exists() or path.stat().st_size != held * row.itemsize:
                path.unlink(missing_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    os.truncate(handle, held * row.itemsize)  # zeros, of which no disk is taken
                finally:
                    os.close(handle)
            self._rows = np.memmap(path, row, "r+", shape=(held,))
        except OSError as error:
            raise DataError(
                f"What a client sent of its samples cannot be kept in {path} ({error}); free "
                "space there, set SFL_STATE_DIR to a directory on another disk, or set temporal=0."
            ) from error

    def rounds(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the round in which each sample was last sent, `NEVER` for none; int64 [n]."""
        found = self._rows[rows]
        whole = [check == _check(z, round) for round, check, z in found]
        return np.where(whole, found["round"], NEVER).astype(np.int64)

    def get(self, rows: npt.NDArray[np.int64]) -> np.ndarray:
        """Return what arrived of samples, float32 [n, size], zeros for those never sent."""
        known = self.rounds(rows) != NEVER
        return np.where(known[:, None], self._rows["z"][rows], np.float32(0))

    def put(self, rows: npt.NDArray[np.int64], round: int, z: np.ndarray) -> None:
        """Remember what arrived of samples in a round, float32 [n, size]."""
        for at, row in zip(rows.tolist(), z, strict=True):
            self._rows[at] = (round, _check(row, round), row)
        self._rows.flush()


def in_brief(node: Node, request: ForwardRequest, reply: ForwardReply) -> ForwardReply:
    """Return the reply with differences, and without what has hardly changed.

    Where client and server do not remember the same of the samples of a request, all of their
    smashed data travel, and both begin anew with these.
    """
    if request.known is None:
        return reply
    z, held = reply.z, len(node.rows)
    rows = rows_of_round(node.key, request.round, request.minibatches, held, request.batch_size)
    memory = SampleMemory(node.store.own_file("samples"), held, z[0].size)
    rounds = memory.rounds(rows)
    alike = memory_digest(rounds) == request.known
    old = memory.get(rows).reshape(z.shape) if alike else np.zeros_like(z)
    changed = changed_samples(z, old, request.temporal) | (rounds == NEVER)
    if not alike:
        changed[:] = True
    sent = (z - old)[changed]
    encoding = encoding_of(request.setup.smashed)
    arrived = encoding.decode(encoding.encode(sent, "smashed"))
    memory.put(rows[changed], request.round, (old[changed] + arrived).reshape(len(sent), -1))
    return replace(reply, z=sent, changed=np.packbits(changed).tobytes() if alike else None)


def _check(z: np.ndarray, round: int) -> int:
    return crc32(np.ascontiguousarray(z).data, round + 1) or 1  # a row of zeros was never written
