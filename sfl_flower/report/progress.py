"""Live progress of a run: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sfl_flower.report.history import RoundRecord
from sfl_flower.report.table import human_bytes

__all__ = ["RunProgress"]


class RunProgress:
    """Shows the rounds of one run or of several, one after another or side by side.

    A context manager. Call :meth:`start` before each run and :meth:`update`, or the object itself,
    after each round; runs side by side use what their `start` returned instead. On a terminal
    every run has a bar; elsewhere a line is printed at every tenth of a run.

    Parameters
    ----------
    console : Console, optional
        Where to write; standard output by default.
    metric : str
        The evaluation result to show.
    keep : bool
        Whether the bar of a run that has ended stays; if not, a line takes its place.
    """

    def __init__(
        self, console: Console | None = None, metric: str = "accuracy", *, keep: bool = True
    ) -> None:
        self._console = console or Console()
        self._metric = metric
        self._keep = keep
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
        self._latest: _Run | None = None

    def start(self, label: str, rounds: int, done: int = 0) -> Callable[[RoundRecord], None]:
        """Begin a run.

        Parameters
        ----------
        label : str
            Its name, such as the method's.
        rounds : int
            Number of rounds.
        done : int
            How many of them were done before (a resumed run).

        Returns
        -------
        callable
            Shows the end of a round of this run, as `update` does for the run begun last.
        """
        bar = self._bars.add_task(escape(label), total=rounds, completed=done, status="")
        self._latest = run = _Run(label, rounds, bar, printed=done)
        return lambda record: self._show(run, record)

    def update(self, record: RoundRecord) -> None:
        """Show the end of a round; begins a run of unknown length when none was started."""
        if self._latest is None:
            self.start("run", max(1, record.round))
        if self._latest is not None:
            self._show(self._latest, record)

    __call__ = update

    def _show(self, run: _Run, record: RoundRecord) -> None:
        score = record.metrics.get(self._metric, math.nan)
        if math.isfinite(score):
            run.score = f"{self._metric} {score:.3f}"
        run.lost += record.failures + record.rejected
        status = _status(run, record)
        self._bars.update(run.bar, completed=record.round, status=status)
        over = record.round >= run.rounds and not self._keep
        if over:
            self._bars.update(run.bar, visible=False)
        if over if self._live else run.due(record.round):
            run.printed = record.round
            line = f"{run.label}: round {record.round}/{run.rounds}  {status}"
            # A wide line is not broken, so that a log has one line a report.
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()


@dataclass
class _Run:
    """A run that is shown, and how far."""

    label: str
    rounds: int
    bar: TaskID
    printed: int
    score: str = ""
    lost: int = 0

    def due(self, number: int) -> bool:
        tenth = max(1, -(-self.rounds // 10))
        last = number >= self.rounds and number > self.printed
        return last or number - self.printed >= tenth


def _status(run: _Run, record: RoundRecord) -> str:
    parts = [run.score] if run.score else []
    if record.loss is not None:
        parts.append(f"loss {record.loss:.3f}")
    parts.append(human_bytes(record.bytes_up + record.bytes_down))
    if record.seconds > 0 and record.round > 0:
        parts.append(f"{record.round / record.seconds:.1f} rounds/s")
    if run.lost:
        parts.append(f"{run.lost} replies lost")
    return "  ".join(parts)
