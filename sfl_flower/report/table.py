"""The comparison of runs as tables, for a terminal and for markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl_flower.report.conduct import Conduct
from sfl_flower.wire import CATEGORIES

__all__ = [
    "CATEGORIES",
    "METHODS_A_TABLE",
    "NONE",
    "Part",
    "Summary",
    "by_category",
    "human_bytes",
    "human_count",
    "markdown_part",
    "narrow",
    "print_all",
    "print_tables",
    "rich_part",
    "rich_tables",
]

NONE = "–"

METHODS_A_TABLE = 5

GAP = 2
"""Blanks between two columns."""

Part = tuple[str, list[str], list[list[str]]]
"""Title, header and rows of a table."""


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
    client_flops : float or None
        Floating point operations of a client per sample it trained on; None if not measured.
    seconds : float
        Wall-clock time.
    out : Path or None
        The run directory.
    server_lr : bool
        Whether the run's server optimiser changes what the method does.
    terms : Mapping[str, Any]
        On what terms the method was trained, see `sfl_flower.run.terms`; plain values.
    clients : Conduct
        What was found of clients' answers, see `sfl_flower.report.conduct`.
    """

    method: str
    metrics: Mapping[str, float]
    samples: int
    ledger: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    exchanges: int = 0
    client_peak_bytes: int | None = None
    seconds: float = 0.0
    out: Path | None = None
    client_flops: float | None = None
    server_lr: bool = True
    terms: Mapping[str, Any] = field(default_factory=dict)
    clients: Conduct = field(default_factory=dict)

    def total(self, direction: str) -> int:
        """Return the bytes ``"up"`` or ``"down"`` over all categories."""
        return sum(entry.get(direction, 0) for entry in self.ledger.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the directory; no number is NaN or infinite."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "out"}
        values["metrics"] = {
            name: value if math.isfinite(value) else None for name, value in self.metrics.items()
        }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], out: Path | None = None) -> Summary:
        """Rebuild a summary; a metric that is null becomes NaN, further keys are left out."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name not in ("out", "clients")}
        known["clients"] = values.get("clients", {})  # a file of an earlier release has none
        known["metrics"] = {
            name: math.nan if value is None else float(value)
            for name, value in values["metrics"].items()
        }
        return cls(**known, out=out)


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


def human_count(count: float | None) -> str:
    """Return a number of operations with a decimal unit, such as ``1.5 M``."""
    if not count:
        return NONE
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count:.0f}"


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
        parts.append(by_category(summaries[start : start + METHODS_A_TABLE]))
    return [rich_part(part) for part in parts]


def markdown_part(part: Part) -> str:
    """Return one table as markdown."""
    title, header, rows = part
    rule = [":--"] + ["--:"] * (len(header) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, rule, *rows]]
    return f"**{title}**\n\n" + "\n".join(lines) + "\n"


def print_tables(
    summaries: Sequence[Summary], metric: str = "accuracy", console: Console | None = None
) -> None:
    """Print the tables; parameters as for :func:`rich_tables`, standard output by default."""
    print_all(rich_tables(summaries, metric), console)


def print_all(tables: Iterable[Table], console: Console | None = None) -> None:
    """Print tables with an empty line between them."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=100)
    for index, table in enumerate(tables):
        if index:
            console.print()
        console.print(table)


def narrow(part: Part, width: int) -> list[Part]:
    """Return a table as one or more that fit a terminal, the first column in each of them."""
    title, header, rows = part
    widths = [
        max(len(line) for row in [header, *rows] for line in row[index].splitlines() or [""])
        for index in range(len(header))
    ]
    groups: list[list[int]] = [[]]
    for index in range(1, len(header)):
        group = [*groups[-1], index]
        if groups[-1] and widths[0] + sum(GAP + widths[i] for i in group) > width:
            groups.append([index])
        else:
            groups[-1] = group
    return [
        (
            title if number == 0 else "",
            [header[i] for i in [0, *group]],
            [[row[i] for i in [0, *group]] for row in rows],
        )
        for number, group in enumerate(groups)
    ]


def rich_part(part: Part) -> Table:
    """Return one table for a terminal."""
    title, header, rows = part
    table = Table(
        title=title or None,
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


def by_category(summaries: Sequence[Summary]) -> Part:
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
