"""What a client last sent of each of its samples, in a file of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfl_flower.errors import DataError
from sfl_flower.node.node import Node
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest
from sfl_flower.wire.recall import (
    NEVER,
    arrived,
    changed_samples,
    memory_check,
    memory_digest,
    rows_of_round,
)

__all__ = ["SampleMemory", "in_brief"]


class SampleMemory:
    """Smashed data of samples as they arrived at the server.

    A sample takes 4 bytes, and 4 for each number of its smashed data.  A row that was damaged is
    one that was never written, and so is every row of a file that is lost.

    Parameters
    ----------
    path : Path
        The file, in an `own_directory`.
    held : int
        Samples of the client.
    size : int
        Numbers of a sample's smashed data.
    """

    def __init__(self, path: Path, held: int, size: int) -> None:
        self._path, self._size, self._bytes = path, size, 4 + 4 * size
        # Of another size it is another model's, or another share of the data.
        if path.exists() and path.stat().st_size > held * self._bytes:
            path.unlink()

    def get(self, rows: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Return the check of each sample, `NEVER` for none, and what arrived, zeros for none.

        Returns
        -------
        checks : list of int
            Of each of the `rows`.
        z : numpy.ndarray
            float32, shape [n, size].
        """
        found = np.zeros((len(rows), self._size), np.float32)
        checks = [NEVER] * len(rows)
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except OSError:
            return checks, found
        try:
            for at, row in enumerate(rows.tolist()):
                data = os.pread(handle, self._bytes, row * self._bytes)
                check = int.from_bytes(data[:4], "little")
                if len(data) == self._bytes and check != NEVER:
                    z = np.frombuffer(data, "<f4", offset=4)
                    if memory_check(z) == check:
                        checks[at], found[at] = check, z
        finally:
            os.close(handle)
        return checks, found

    def put(self, rows: np.ndarray, z: np.ndarray) -> None:
        """Remember what arrived of samples, float32 [n, size].

        Raises
        ------
        DataError
            If the file cannot be written.
        """
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                for row, values in zip(rows.tolist(), z, strict=True):
                    data = memory_check(values).to_bytes(4, "little")
                    os.pwrite(handle, data + values.astype("<f4").tobytes(), row * self._bytes)
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(
                f"What a client sent of its samples cannot be kept in {self._path} ({error}); free "
                "space there, set SFL_STATE_DIR to a directory on another disk, or set temporal=0."
            ) from error


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
    checks, kept = memory.get(rows)
    alike = memory_digest(checks) == request.known
    old = kept.reshape(z.shape) if alike else np.zeros_like(z)
    changed = changed_samples(z, old, request.temporal) | (np.array(checks) == NEVER)
    if not alike:
        changed[:] = True
    sent = (z - old)[changed]
    found = old[changed] + arrived(sent, request.encodings)
    memory.put(rows[changed], found.reshape(len(sent), -1))
    return replace(reply, z=sent, changed=np.packbits(changed).tobytes() if alike else None)
