"""The comparison of runs as tables, for a terminal and for markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["CATEGORIES", "Summary", "human_bytes", "markdown_tables", "print_tables", "rich_tables"]

CATEGORIES = (
    "smashed",
    "labels",
    "gradients",
    "scalars",
    "keys",
    "weights",
    "auxiliary",
    "control",
)
NONE = "–"

Rows = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class Summary:
    """The outcome of one run.

    Attributes
    ----------
    method : str
        Name of the method.
    metrics : mapping of str to float
        Result of the last evaluation.
    samples : int
        Training samples over all clients.
    ledger : mapping of str to mapping of str to int
        Category to ``{"up": bytes, "down": bytes}``, all clients.
    exchanges : int
        Request and reply pairs, summed over clients.
    client_peak_bytes : int or None
        Peak of what torch allocated on a client above its level at entry; None if not measured.
    seconds : float
        Wall-clock time.
    out : Path or None
        The run directory.
    """

    method: str
    metrics: Mapping[str, float]
    samples: int
    ledger: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    exchanges: int = 0
    client_peak_bytes: int | None = None
    seconds: float = 0.0
    out: Path | None = None

    def total(self, direction: str) -> int:
        """Return the bytes ``"up"`` or ``"down"`` over all categories."""
        return sum(entry.get(direction, 0) for entry in self.ledger.values())


def human_bytes(count: int | None) -> str:
    """Return a byte count with three or four digits and a binary unit; a dash for none or zero."""
    if not count:
        return NONE
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.95:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def rich_tables(summaries: Sequence[Summary], metric: str = "accuracy") -> list[Table]:
    """Return the two tables, results and bytes by category, for a terminal of 100 columns."""
    tables = []
    for title, header, rows in _tables(summaries, metric):
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    return tables


def markdown_tables(summaries: Sequence[Summary], metric: str = "accuracy") -> str:
    """Return the same two tables as plain markdown."""
    blocks = []
    for title, header, rows in _tables(summaries, metric):
        rule = [":--"] + ["--:"] * (len(header) - 1)
        lines = ["| " + " | ".join(cells) + " |" for cells in [header, rule, *rows]]
        blocks.append(f"**{title}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(blocks)


def print_tables(
    summaries: Sequence[Summary], metric: str = "accuracy", console: Console | None = None
) -> None:
    """Print the tables to the terminal."""
    console = console or Console()
    for table in rich_tables(summaries, metric):
        console.print(table)


def _tables(summaries: Sequence[Summary], metric: str) -> tuple[Rows, Rows]:
    return _results(summaries, metric), _by_category(summaries)


def _results(summaries: Sequence[Summary], metric: str) -> Rows:
    header = ["method", metric, "samples", "up", "down", "exchanges", "client peak", "seconds"]
    rows = [
        [
            s.method,
            f"{s.metrics[metric]:.4f}" if metric in s.metrics else NONE,
            f"{s.samples:,}",
            human_bytes(s.total("up")),
            human_bytes(s.total("down")),
            f"{s.exchanges:,}",
            human_bytes(s.client_peak_bytes),
            f"{s.seconds:.1f}",
        ]
        for s in summaries
    ]
    return "Results", header, rows


def _by_category(summaries: Sequence[Summary]) -> Rows:
    """One line a category and direction, one column a method."""
    header = ["bytes", *(s.method for s in summaries)]
    rows = []
    for category in CATEGORIES:
        for direction in ("up", "down"):
            cells = [human_bytes(s.ledger.get(category, {}).get(direction, 0)) for s in summaries]
            if any(cell != NONE for cell in cells):
                rows.append([f"{category} {direction}", *cells])
    return "Bytes by category", header, rows
