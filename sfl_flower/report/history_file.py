"""``history.jsonl``: a line of JSON a round, appended, and the digest of what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sfl_flower.errors import DataError
from sfl_flower.report.files import append_line, atomic_write
from sfl_flower.report.history import History, RoundRecord

__all__ = ["HistoryFile"]


class HistoryFile:
    """The history of a run on disk.

    Parameters
    ----------
    path : Path
        The file; made by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines, self._digest = 0, hashlib.sha256()

    def load(self) -> History:
        """Return the records; none when there is no file."""
        return History.load(self.path) if self.path.exists() else History()

    def append(self, record: RoundRecord) -> None:
        """Add one line, on disk when this returns.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        # A lone surrogate in a note becomes the JSON escape instead of an encoding error.
        line = (record.to_json() + "\n").encode("utf-8", errors="backslashreplace")
        # A checkpoint counts these lines: they must not be lost where it is not.
        append_line(self.path, line)
        self._lines += 1
        self._digest.update(line)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint says of the history: its lines so far and their SHA-256."""
        return {"lines": self._lines, "sha256": self._digest.hexdigest()}

    def own(self, lines: int, digest: str) -> int:
        """Return `lines`, what belongs to a checkpoint, or 0 where the file is gone.

        Parameters
        ----------
        lines : int
            How many first lines belong to it.
        digest : str
            Their SHA-256 in hex.

        Raises
        ------
        DataError
            If they are not all there as they were written.
        """
        if not self.path.exists():
            return 0
        found = self._first(lines)
        if len(found) < lines or hashlib.sha256(b"".join(found)).hexdigest() != digest:
            what = f"{len(found)} of {lines} lines" if len(found) < lines else "other lines"
            raise DataError(
                f"{self.path} holds {what} of the rounds up to the checkpoint; put it back as it "
                "was, or move it away to go on without the records of those rounds."
            )
        return lines

    def keep(self, lines: int) -> History:
        """Drop all but the first lines, of a file that may be gone; return their records."""
        data = b"".join(self._first(lines))
        atomic_write(self.path, lambda tmp: tmp.write_bytes(data))
        self._lines, self._digest = data.count(b"\n"), hashlib.sha256(data)
        return self.load()

    def _first(self, lines: int) -> list[bytes]:
        data = self.path.read_bytes() if self.path.exists() else b""
        return data.splitlines(keepends=True)[:lines]
