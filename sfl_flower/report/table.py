"""The comparison of runs as tables, for a terminal and for markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl_flower.wire import CATEGORIES

__all__ = ["CATEGORIES", "Summary", "human_bytes", "markdown_tables", "print_tables", "rich_tables"]

NONE = "–"

METHODS_A_TABLE = 5

Part = tuple[str, list[str], list[list[str]]]


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
    """Return a byte count with a binary unit, such as ``1.5 MiB``; a dash for none or zero."""
    if not count:
        return NONE
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1023.95:  # below what would print as 1024.0
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def rich_tables(summaries: Sequence[Summary], metric: str = "accuracy") -> list[Table]:
    """Return the tables for a terminal: results, then bytes by category.

    With method names of up to 14 characters they fit 100 columns; the second is split when there
    are more than five methods.

    Parameters
    ----------
    summaries : sequence of Summary
        One a run, in the order of the rows.
    metric : str
        The evaluation result to show.
    """
    parts = [_results(summaries, metric)]
    for start in range(0, len(summaries), METHODS_A_TABLE):
        parts.append(_by_category(summaries[start : start + METHODS_A_TABLE]))
    return [_rich(*part) for part in parts]


def markdown_tables(summaries: Sequence[Summary], metric: str = "accuracy") -> str:
    """Return the two tables as markdown; parameters as for :func:`rich_tables`."""
    blocks = []
    for title, header, rows in (_results(summaries, metric), _by_category(summaries)):
        rule = [":--"] + ["--:"] * (len(header) - 1)
        lines = ["| " + " | ".join(cells) + " |" for cells in [header, rule, *rows]]
        blocks.append(f"**{title}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(blocks)


def print_tables(
    summaries: Sequence[Summary], metric: str = "accuracy", console: Console | None = None
) -> None:
    """Print the tables; parameters as for :func:`rich_tables`, standard output by default."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=100)
    for index, table in enumerate(rich_tables(summaries, metric)):
        if index:
            console.print()
        console.print(table)


def _rich(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, name in enumerate(header):
        first = index == 0
        table.add_column(
            escape(name), justify="left" if first else "right", overflow="fold", no_wrap=first
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _results(summaries: Sequence[Summary], metric: str) -> Part:
    header = ["method", metric, "samples", "up", "down", "exchanges", "client peak", "seconds"]
    rows = [
        [
            s.method,
            f"{s.metrics[metric]:.4f}" if metric in s.metrics else NONE,
            f"{s.samples:,}" if s.samples else NONE,
            human_bytes(s.total("up")),
            human_bytes(s.total("down")),
            f"{s.exchanges:,}" if s.exchanges else NONE,
            human_bytes(s.client_peak_bytes),
            f"{s.seconds:.1f}",
        ]
        for s in summaries
    ]
    return "Results", header, rows


def _by_category(summaries: Sequence[Summary]) -> Part:
    """Return one row a category and direction that any method used, one column a method."""
    header = ["bytes", *(s.method for s in summaries)]
    rows = []
    names = [*CATEGORIES, *sorted({c for s in summaries for c in s.ledger} - set(CATEGORIES))]
    for category in names:
        for direction in ("up", "down"):
            counts = [s.ledger.get(category, {}).get(direction, 0) for s in summaries]
            if any(counts):
                rows.append([f"{category} {direction}", *map(human_bytes, counts)])
    for direction in ("up", "down"):
        rows.append([f"total {direction}", *(human_bytes(s.total(direction)) for s in summaries)])
    return "Bytes by category, all clients", header, rows
