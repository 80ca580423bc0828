"""Live progress of a run: a panel on a terminal, a few lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live

from sfl_flower.report.history import RoundRecord
from sfl_flower.report.panel import Shown, panel
from sfl_flower.report.table import human_bytes

__all__ = ["RunProgress"]


class RunProgress:
    """Shows the rounds of one run or of several, one after another or side by side.

    A context manager. Call :meth:`start` before each run and :meth:`update`, or the object itself,
    after each round; runs side by side use what their `start` returned instead. On a terminal
    every run has a panel; elsewhere a line is printed at every tenth of a run.

    Parameters
    ----------
    console : Console, optional
        Where to write; standard output by default.
    metric : str
        The evaluation result to show.
    keep : bool
        Whether the panel of a run that has ended stays; if not, a line takes its place.
    """

    def __init__(
        self, console: Console | None = None, metric: str = "accuracy", *, keep: bool = True
    ) -> None:
        self._console = console or Console()
        self._metric = metric
        self._keep = keep
        self._terminal = self._console.is_terminal
        self._runs: list[Shown] = []
        self._live = Live(
            get_renderable=self._panels, console=self._console, refresh_per_second=_REFRESH
        )
        self._latest: Shown | None = None

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
        self._latest = run = Shown(label, rounds, printed=done)
        self._runs.append(run)
        return lambda record: self._show(run, record)

    def update(self, record: RoundRecord) -> None:
        """Show the end of a round; begins a run of unknown length when none was started."""
        if self._latest is None:
            self.start("run", max(1, record.round))
        if self._latest is not None:
            self._show(self._latest, record)

    __call__ = update

    def _show(self, run: Shown, record: RoundRecord) -> None:
        run.add(record, self._metric)
        over = record.round >= run.rounds and not self._keep
        if over:
            self._runs.remove(run)
        if over if self._terminal else run.due(record.round):
            run.printed = record.round
            line = f"{run.label}: round {record.round}/{run.rounds}  {_status(run, record)}"
            # A wide line is not broken, so that a log has one line a report.
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _panels(self) -> Group:
        return Group(*(panel(run) for run in list(self._runs)))

    def __enter__(self) -> RunProgress:
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._terminal:
            self._live.stop()


_REFRESH = 4
"""Times a second that a terminal is drawn."""


def _status(run: Shown, record: RoundRecord) -> str:
    parts = [f"{run.metric} {run.score:.3f}"] if math.isfinite(run.score) else []
    if record.loss is not None:
        parts.append(f"loss {record.loss:.3f}")
    parts.append(human_bytes(record.bytes_up + record.bytes_down))
    if record.seconds > 0 and record.round > 0:
        parts.append(f"{record.round / record.seconds:.1f} rounds/s")
    if run.lost:
        parts.append(f"{run.lost} replies lost")
    return "  ".join(parts)
