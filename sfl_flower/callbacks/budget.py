"""Ending a run before it costs too much."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from sfl_flower.callbacks.callback import Callback, Run
from sfl_flower.errors import ConfigError
from sfl_flower.options import UNITS, Range, check_options
from sfl_flower.report.history import RoundRecord
from sfl_flower.report.table import human_bytes

__all__ = ["Budget"]

_UNITS = {"": 1, "B": 1, **UNITS, "TiB": 2**40}


@dataclass(eq=False)
class Budget(Callback):
    """End the run before a round that would cost too much, if it cost what the last one did.

    What a sample's privacy may cost is a setting of the methods, ``dp_epsilon``.

    Attributes
    ----------
    bytes : int or str
        Bytes of all messages, up and down, over all clients, as the ledger counts them: a number,
        or a text such as ``"64MiB"``; 0: no limit.
    seconds : float
        Wall-clock seconds, those before a resume included; 0: no limit.

    Raises
    ------
    ConfigError
        If a value is not legal, or there is no limit at all.
    """

    bytes: int | str = 0
    seconds: Annotated[float, Range(0)] = 0.0

    def __post_init__(self) -> None:
        self.bytes = _bytes(self.bytes)
        check_options(self)
        if not self.bytes and not self.seconds:
            raise ConfigError("Budget has no limit; give it bytes= or seconds=.")

    def on_begin(self, run: Run) -> None:
        """Forget what rounds cost: `stop` is asked for all records again."""
        self._size, self._seconds = 0, 0.0

    def stop(self, record: RoundRecord) -> str | None:
        """Return what would be exceeded by another round such as this one."""
        size, seconds = record.bytes_up + record.bytes_down, record.seconds
        more, longer = size - self._size, seconds - self._seconds
        self._size, self._seconds = size, seconds
        if isinstance(self.bytes, int) and 0 < self.bytes < size + more:
            so_far = f"another {human_bytes(more)} to the {human_bytes(size)} so far"
            return f"{so_far} would exceed {human_bytes(self.bytes)}"
        if 0 < self.seconds < seconds + longer:
            so_far = f"another {longer:.3g} s to the {seconds:.6g} s so far"
            return f"{so_far} would exceed {self.seconds:g} s"
        return None


def _bytes(given: int | str) -> int:
    """Return a number of bytes."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([KMGT]iB|B|)", str(given), re.ASCII)
    if isinstance(given, bool) or not found:
        raise ConfigError(
            f"bytes is {given!r}; it must be a number of bytes from 0, or one with a unit, such as "
            "64MiB (KiB, MiB, GiB, TiB)."
        )
    number, unit = found[1], _UNITS[found[2]]
    return int(number) * unit if number.isdecimal() else int(float(number) * unit)
