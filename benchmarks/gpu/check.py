"""The sections of the GPU check, in a process beside this one, and what is kept of them.

A section that fails, hangs or takes the process with it is noted, and the next ones run in a new
process: after an error a GPU's context may be lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.figure import Figure
from sfl_flower.errors import ConfigError

__all__ = ["BEGIN", "END", "FIGURE", "NO_DEVICE", "SECONDS", "SECTIONS", "Check", "Section"]

BEGIN, END, FIGURE = "BEGIN", "END", "FIGURE"
"""First words of the lines that tell of a section's start and end, and of a figure, as JSON."""
NOT_THERE = "the device is not there"
NO_DEVICE = 3
"""Exit status of a section, and of the check, where the device is not there."""
SECONDS = 560.0
"""For everything; what is not done by then is left out."""
_LEAST, _START_UP = 5.0, 90.0
"""Without so many seconds no section begins; what a process may take to import everything."""


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Attributes
    ----------
    source : str
        ``"module:function"``, from device and size to figures.
    seconds : float
        After which it is ended.
    equality : bool
        Whether its targets are equalities, which have to hold.
    """

    source: str
    seconds: float
    equality: bool = False


SECTIONS = {
    "environment": Section("benchmarks.gpu.environment:run", 30, True),
    "directions": Section("benchmarks.gpu.equality:directions", 90, True),
    "replay": Section("benchmarks.gpu.equality:replay", 60, True),
    "run": Section("benchmarks.gpu.equality:whole_run", 60, True),
    "waits": Section("benchmarks.gpu.waits:run", 60),
    "peaks": Section("benchmarks.gpu.peaks:run", 200),
    "speed": Section("benchmarks.gpu.speed:run", 150),
}
"""In this order: what has to hold first, what takes long last."""
_PREPARES = "environment"
"""An equality section that alone shows nothing of this package."""


def _print(line: str) -> None:
    print(line, flush=True)


@dataclass
class Check:
    """Runs sections and keeps what they say in a folder.

    Attributes
    ----------
    device : str
        "cuda" or "cpu".
    small : bool
        Whether sizes are those of a test.
    out : Path
        The folder: ``figures.jsonl``, a figure a line; ``gpu_check.log``, all that was printed;
        ``summary.txt``.
    seconds : float
        For all sections together.
    say : callable
        Shows a line.
    asked : list of str
        The sections that `run` was asked for.
    ended : dict of str to str
        How each section that ran ended: "done", or why not.
    missed : list of str
        Equalities that do not hold.
    """

    device: str
    small: bool
    out: Path
    seconds: float = SECONDS
    say: Callable[[str], None] = _print
    asked: list[str] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    _rows: list[str] = field(default_factory=list)
    _end: float = 0.0
    _log: IO[str] = sys.stdout

    def run(self, names: Sequence[str]) -> Iterator[Figure]:
        """Yield the figures of sections as they come.

        Raises
        ------
        ConfigError
            If there is no such section.
        """
        if unknown := [name for name in names if name not in SECTIONS]:
            raise ConfigError(
                f"The GPU check has no section '{unknown[0]}'; it has {', '.join(SECTIONS)}."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        self._end, self._rows = time.monotonic() + self.seconds, []
        self.asked = list(names)
        self._summary()  # nothing is left of an earlier check
        with (
            open(self.out / "gpu_check.log", "w", encoding="utf-8") as self._log,
            open(self.out / "figures.jsonl", "w", encoding="utf-8") as kept,
        ):
            while left := [name for name in names if name not in self.ended]:
                if self._left() < _LEAST:
                    self._ended(left[0], "left out, for there is no time left")
                    continue
                for name, figure in self._process(left):
                    print(figure.to_json(), file=kept, flush=True)
                    self._rows.append(_row(figure))
                    self._say(self._rows[-1])
                    if SECTIONS[name].equality and not figure.met and figure.target is not None:
                        self.missed.append(figure.name)
                    yield figure
                if NOT_THERE in self.ended.values():
                    break
            for line in self.verdict():
                self._say(line)

    def verdict(self) -> list[str]:
        """Return how the sections ended, and whether everything that has to be equal is."""
        sections = [f"section {name}: {how}" for name, how in self.ended.items()]
        if self.missed:
            return [*sections, f"NOT EQUAL: {', '.join(self.missed)}"]
        if why := self._not_shown():
            return [*sections, f"EQUALITY NOT SHOWN: {why}"]
        return [*sections, "EQUAL: everything that has to have the CPU's bits has them"]

    def _not_shown(self) -> str:
        """Return why equality is not shown, where none is known not to hold; "" where it is."""
        names = [n for n in SECTIONS if SECTIONS[n].equality and n in {*self.asked, *self.ended}]
        if undone := [n for n in names if self.ended.get(n, "done") != "done"]:
            return f"{', '.join(undone)} did not end"
        if waiting := [n for n in names if n not in self.ended]:
            return f"{', '.join(waiting)} not run yet"
        if set(names) <= {_PREPARES}:
            others = [n for n in SECTIONS if SECTIONS[n].equality and n != _PREPARES]
            return f"{', '.join(others)} not run"
        return ""

    def status(self) -> int:
        """Return 0; 1 where an equality is not shown; 2 where another section did not end.

        3 where the device is not there.
        """
        if NOT_THERE in self.ended.values():
            return NO_DEVICE
        if self.missed or self._not_shown():
            return 1
        return 2 if any(self.ended.get(name) != "done" for name in self.asked) else 0

    def _process(self, names: Sequence[str]) -> Iterator[tuple[str, Figure]]:
        """Run sections in one process, until they are done or one of them is the end of it."""
        command = [
            sys.executable, "-u", "-m", "benchmarks.gpu", "--section", ",".join(names),
            "--device", self.device, *(["--small"] if self.small else []),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        name, limit = names[0], min(SECTIONS[names[0]].seconds + _START_UP, self._left())
        timer = _Timer(process, limit)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                word, _, rest = line.rstrip().partition(" ")
                if word == BEGIN:
                    name, limit = rest, min(SECTIONS[rest].seconds, self._left())
                    timer.again(limit)
                    self._say(f"== {name}, {limit:.0f} s at most")
                elif word == END:
                    self._ended(rest, "done")
                elif word == FIGURE:
                    yield name, _read(rest)
                else:
                    self._say(f"   {line.rstrip()}")
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if NO_DEVICE == code:
            self._ended(name, NOT_THERE)
        elif name not in self.ended:
            late = f"ended after {limit:.0f} s"
            self._ended(name, late if timer.rang else f"failed with exit status {code}")
        elif code:  # between two sections, where nothing of theirs runs
            following = next((each for each in names if each not in self.ended), "")
            if following:
                self._ended(following, f"failed with exit status {code}")

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _ended(self, name: str, how: str) -> None:
        self.ended[name] = how
        self._say(f"-- {name}: {how}, {self.seconds - self._left():.0f} s since the start")
        self._summary()

    def _summary(self) -> None:
        lines = [*self._rows, *self.verdict()]
        (self.out / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _say(self, line: str) -> None:
        self.say(line)
        print(line, file=self._log, flush=True)


class _Timer:
    """Kills a process when its time is over."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process, self.rang = process, False
        self._timer = self._start(seconds)

    def again(self, seconds: float) -> None:
        """Begin to count anew."""
        self._timer.cancel()
        self._timer = self._start(seconds)

    def _start(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(max(0.0, seconds), self._ring)
        timer.daemon = True
        timer.start()
        return timer

    def cancel(self) -> None:
        """Stop counting."""
        self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        self._process.kill()


def _row(figure: Figure) -> str:
    verdict = {None: "", True: "[ok]", False: "[MISSED]"}[figure.met]
    return f"{verdict:<8} {figure.name} = {figure.value:.6g} {figure.unit}; {figure.setting}"


def _read(line: str) -> Figure:
    told = json.loads(line)
    value = float("nan") if told["value"] is None else told["value"]
    return Figure(
        told["name"], value, told["unit"], told["target"], told["setting"], told["lower_is_better"]
    )
