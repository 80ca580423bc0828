"""``asked.jsonl``: what clients were asked for that costs privacy, written before they are asked.

Nothing else says it: a history forgets rounds that are done again, and a checkpoint knows of none
behind it.  Lines are added and never taken away, each with a digest of itself and those before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfl_flower.errors import DataError
from sfl_flower.report.files import append_line, canonical_json, config_digest

__all__ = ["ASKED", "Asked", "AskedFile"]

ASKED = "asked.jsonl"
_SEAL = "sha256"


@dataclass(frozen=True)
class Asked:
    """What clients were asked for in one round, or for the second time.

    Attributes
    ----------
    round : int
        The round whose mini-batches they probe, from 1.
    noise : float
        σ; above 0.
    clients : Mapping[int, int]
        By partition, how many samples each client says it holds.
    """

    round: int
    noise: float
    clients: Mapping[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        held = {str(partition): samples for partition, samples in self.clients.items()}
        return {"round": self.round, "noise": self.noise, "clients": held}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Asked:
        """Read what `to_dict` gave.

        Raises
        ------
        ValueError, TypeError, KeyError, AttributeError, OverflowError
            If it is something else.
        """
        round, noise = values["round"], float(values["noise"])
        clients = {int(partition): samples for partition, samples in values["clients"].items()}
        whole = (round, *clients.values())
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in whole):
            raise ValueError("a round and a number of samples are whole numbers above 0")
        if min(clients, default=0) < 0 or not (math.isfinite(noise) and noise > 0):
            raise ValueError("a partition is at least 0, and noise finite and above 0")
        return cls(round, noise, clients)


class AskedFile:
    """What a run has asked its clients for, on disk.

    Parameters
    ----------
    path : Path
        The file; made by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end: tuple[int, str] | None = None  # bytes of whole lines, and the last one's digest

    def load(self) -> list[Asked]:
        """Return what was asked for, in order; nothing where there is no file.

        A last line that was torn is left out: nobody was asked before it was whole.

        Raises
        ------
        DataError
            If the file cannot be read, or a line is not as it was written.
        """
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror}.") from error
        found, seal, size = [], "", data.rfind(b"\n") + 1
        for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
            try:
                values = json.loads(line)
                own = values.pop(_SEAL)
                if own != _sealed(values, seal):
                    raise ValueError("it does not fit its digest")
                found.append(Asked.from_dict(values))
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
            ):
                raise self.unlike(f"line {number} is not as it was written") from None
            seal = own
        self._end = size, seal
        return found

    def append(self, asked: Asked) -> None:
        """Add one line, on disk when this returns.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        if self._end is None:
            self.load()
        size, seal = self._end or (0, "")
        values = asked.to_dict()
        seal = _sealed(values, seal)
        line = (canonical_json({**values, _SEAL: seal}) + "\n").encode()
        append_line(self.path, line, size)
        self._end = size + len(line), seal

    def unlike(self, problem: str) -> DataError:
        """Return the error for a file that is not what the run wrote.

        Parameters
        ----------
        problem : str
            What is wrong with it.
        """
        rest = (
            f"{self.path}: {problem}; it says what clients were asked for, and without it epsilon "
            "would be too low. Put it back as it was, or start anew in another directory with"
        )
        return DataError(f"{rest} out=.", shell=f"{rest} --out.")


def _sealed(values: Mapping[str, Any], before: str) -> str:
    return config_digest({**values, "before": before})
