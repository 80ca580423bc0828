"""Live progress of a run: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sfl_flower.report.history import RoundRecord
from sfl_flower.report.table import human_bytes

__all__ = ["RunProgress"]


class RunProgress:
    """Shows the rounds of one run or of several, one after another.

    Call :meth:`start` before each run and :meth:`update` (or the object itself) after each round.

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
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._label = ""
        self._rounds = 0
        self._last = ""
        self._printed = 0

    def start(self, label: str, rounds: int, done: int = 0) -> None:
        """Begin a run of `rounds` rounds, of which `done` were done before (a resume)."""
        self._label, self._rounds, self._last, self._printed = label, rounds, NO_VALUE, done
        self._task = self._bar.add_task(label, total=rounds, completed=done, status="")

    def update(self, record: RoundRecord) -> None:
        """Show a round."""
        if self._task is None:
            self.start("run", record.round)
        assert self._task is not None
        if self._metric in record.metrics:
            self._last = f"{self._metric} {record.metrics[self._metric]:.3f}"
        self._bar.update(self._task, completed=record.round, status=self._status(record))
        if not self._live and self._due(record):
            self._printed = record.round
            print_line = f"{self._label}: round {record.round}/{self._rounds}"
            self._console.print(f"{print_line}  {self._status(record)}", highlight=False)

    __call__ = update

    def _due(self, record: RoundRecord) -> bool:
        tenth = max(1, self._rounds // 10)
        return record.round - self._printed >= tenth or record.round >= self._rounds

    def _status(self, record: RoundRecord) -> str:
        rate = record.round / record.seconds if record.seconds > 0 else 0.0
        loss = "" if record.loss is None else f"loss {record.loss:.3f}  "
        traffic = human_bytes(record.bytes_up + record.bytes_down)
        return f"{self._last}  {loss}{traffic}  {rate:.1f} rounds/s"

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


NO_VALUE = ""
