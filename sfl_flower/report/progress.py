"""Live progress of a run: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sfl_flower.report.history import RoundRecord
from sfl_flower.report.table import human_bytes

__all__ = ["RunProgress"]


class RunProgress:
    """Shows the rounds of one run or of several, one after another.

    A context manager. Call :meth:`start` before each run and :meth:`update`, or the object itself,
    after each round. On a terminal every run has a bar; elsewhere a line is printed at every tenth
    of a run.

    Parameters
    ----------
    console : Console, optional
        Where to write; standard output by default.
    metric : str
        The evaluation result to show.
    """

    def __init__(self, console: Console | None = None, metric: str = "accuracy") -> None:
        self._console = console or Console()
        self._metric = metric
        self._live = self._console.is_terminal
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._label = ""
        self._rounds = 0
        self._printed = 0
        self._score = ""
        self._lost = 0

    def start(self, label: str, rounds: int, done: int = 0) -> None:
        """Begin a run.

        Parameters
        ----------
        label : str
            Its name, such as the method's.
        rounds : int
            Number of rounds.
        done : int
            How many of them were done before (a resumed run).
        """
        self._label, self._rounds, self._printed = label, rounds, done
        self._score, self._lost = "", 0
        self._task = self._bars.add_task(escape(label), total=rounds, completed=done, status="")

    def update(self, record: RoundRecord) -> None:
        """Show the end of a round; begins a run of unknown length when none was started."""
        if self._task is None:
            self.start("run", max(1, record.round))
        score = record.metrics.get(self._metric, math.nan)
        if math.isfinite(score):
            self._score = f"{self._metric} {score:.3f}"
        self._lost += record.failures + record.rejected
        status = self._status(record)
        if self._task is not None:
            self._bars.update(self._task, completed=record.round, status=status)
        if not self._live and self._due(record.round):
            self._printed = record.round
            line = f"{self._label}: round {record.round}/{self._rounds}  {status}"
            # A wide line is not broken, so that a log has one line a report.
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    __call__ = update

    def _due(self, number: int) -> bool:
        tenth = max(1, -(-self._rounds // 10))
        last = number >= self._rounds and number > self._printed
        return last or number - self._printed >= tenth

    def _status(self, record: RoundRecord) -> str:
        parts = [self._score] if self._score else []
        if record.loss is not None:
            parts.append(f"loss {record.loss:.3f}")
        parts.append(human_bytes(record.bytes_up + record.bytes_down))
        if record.seconds > 0 and record.round > 0:
            parts.append(f"{record.round / record.seconds:.1f} rounds/s")
        if self._lost:
            parts.append(f"{self._lost} replies lost")
        return "  ".join(parts)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()
