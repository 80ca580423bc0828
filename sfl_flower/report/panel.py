"""The panel of a run that is going: how far it is, what it has learned, what it costs."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sfl_flower.report.history import RoundRecord
from sfl_flower.report.table import human_bytes

__all__ = ["Shown", "panel"]

_WIDTH, _BAR = 72, 24
_LAST = 20
"""Rounds whose pace says how long the others will take."""


@dataclass(eq=False)
class Shown:
    """A run that is shown, and how far.

    Attributes
    ----------
    label : str
        Its name for people.
    rounds : int
        How many it has.
    printed : int
        The last round of which a line was printed.
    record : RoundRecord or None
        The last one.
    metric : str
        The evaluation result that is shown.
    score : float
        Its last finite value, NaN where there is none yet.
    lost : int
        Replies that were missing or not used, of all rounds.
    """

    label: str
    rounds: int
    printed: int = 0
    record: RoundRecord | None = None
    metric: str = ""
    score: float = math.nan
    lost: int = 0
    pace: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_LAST + 1))

    def add(self, record: RoundRecord, metric: str) -> None:
        """Take note of a round."""
        if self.record is not None and record.round <= self.record.round:
            self.pace.clear()  # it went on from an earlier round, and is told anew
            self.lost, self.score = 0, math.nan
        self.record, self.metric = record, metric
        if math.isfinite(score := record.metrics.get(metric, math.nan)):
            self.score = score
        self.lost += record.failures + record.rejected
        self.pace.append((record.round, record.seconds))

    def due(self, number: int) -> bool:
        """Tell whether a line is to be printed: at every tenth of the run, and at its end."""
        tenth = max(1, -(-self.rounds // 10))
        last = number >= self.rounds and number > self.printed
        return last or number - self.printed >= tenth

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rounds left take at the pace of the last ones; None: not known."""
        if len(self.pace) < 2:
            return None
        (first, began), (last, now) = self.pace[0], self.pace[-1]
        return max(0, self.rounds - last) * (now - began) / (last - first)


def panel(run: Shown) -> Panel:
    """Return what a terminal shows of a run."""
    record = run.record
    head = Table.grid(padding=(0, 2))
    done = 0 if record is None else record.round
    bar = ProgressBar(total=max(1, run.rounds), completed=done, width=_BAR)
    head.add_row(Text(f"round {done}/{run.rounds}", style="bold"), bar, Text(_left(run)))
    lines = [] if record is None else [_learned(run, record), _cost(record), _clients(run, record)]
    body = Group(head, *(Text("   ".join(line)) for line in lines))
    return Panel(body, title=escape(run.label), title_align="left", width=_WIDTH)


def _left(run: Shown) -> str:
    left = run.seconds_left
    return "" if left is None else f"{timedelta(seconds=round(left))} left"


def _learned(run: Shown, record: RoundRecord) -> list[str]:
    parts = [] if record.loss is None else [f"loss {record.loss:.3f}"]
    if math.isfinite(run.score):
        parts.append(f"{run.metric} {run.score:.3f}")
    return parts or ["nothing is measured yet"]


def _cost(record: RoundRecord) -> list[str]:
    parts = [f"up {human_bytes(record.bytes_up)}", f"down {human_bytes(record.bytes_down)}"]
    peak = record.client_peak_bytes
    return [*parts, f"client memory {human_bytes(peak)}"] if peak else parts


def _clients(run: Shown, record: RoundRecord) -> list[str]:
    out = record.failures + record.rejected
    parts = [f"clients {record.replies} in, {out} out"]
    return [*parts, f"{run.lost} replies lost so far"] if run.lost else parts
