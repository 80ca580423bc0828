"""A comparison for a person: tables, plots and a file of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.rows import CONTROL, Comparison, Row, choice
from sfl_flower.report.files import atomic_write, write_json
from sfl_flower.report.plots import accuracy_plot
from sfl_flower.report.table import (
    METHODS_A_TABLE,
    NONE,
    Part,
    by_category,
    human_bytes,
    human_count,
    markdown_part,
    print_all,
    rich_part,
)

__all__ = ["comparison_tables", "markdown_comparison", "print_comparison", "write_comparison"]

AXES = ("samples", "bytes", "seconds")
"""What the accuracy is drawn against, a plot each."""


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the tables for a terminal: accuracy, cost, bytes by category."""
    summaries = [row.summary for row in comparison.rows]
    parts = [_accuracy(comparison), _terms(comparison.rows), _cost(comparison.rows)]
    for start in range(0, len(summaries), METHODS_A_TABLE):
        parts.append(by_category(summaries[start : start + METHODS_A_TABLE]))
    return [rich_part(part) for part in parts]


def markdown_comparison(comparison: Comparison) -> str:
    """Return tables, notes and refused rows as markdown."""
    parts = [_accuracy(comparison), _terms(comparison.rows), _cost(comparison.rows)]
    parts.append(by_category([row.summary for row in comparison.rows]))
    blocks = [markdown_part(part) for part in parts]
    remarks = [*comparison.notes, *_refusals(comparison)]
    if remarks:
        blocks.append("\n".join(f"- {remark}" for remark in remarks) + "\n")
    return "\n".join(blocks)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print tables, notes and refused rows; on standard output by default."""
    print_all(comparison_tables(comparison), console)
    console = console or Console()
    for remark in (*comparison.notes, *_refusals(comparison)):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def write_comparison(comparison: Comparison, out: Path | str) -> Comparison:
    """Write ``table.md``, ``results.json`` and a plot for each axis; return where they are.

    Parameters
    ----------
    comparison : Comparison
        What to write.
    out : Path or str
        The directory, made when needed; files of an earlier comparison are replaced.
    """
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown_comparison(comparison)
    atomic_write(folder / "table.md", lambda tmp: tmp.write_text(table, encoding="utf-8"))
    write_json(folder / "results.json", _numbers(comparison, folder))
    histories = {row.label: [run.history() for run in row.runs] for row in comparison.rows}
    controls = [row.label for row in comparison.rows if row.method == CONTROL]
    if any(h.series(metric=comparison.metric)[0] for hs in histories.values() for h in hs):
        for axis in AXES:
            name = folder / f"{comparison.metric}-{axis}.png"
            accuracy_plot(histories, name, axis, comparison.metric, controls=controls)
    return replace(comparison, out=folder)


def _refusals(comparison: Comparison) -> list[str]:
    return [f"{label} is not in the table: {why}" for label, why in comparison.refused.items()]


def _accuracy(comparison: Comparison) -> Part:
    metric = comparison.metric
    twins = {"walk": [row.walk for row in comparison.rows]}
    twins["at rate 0"] = [row.at_rate_0 for row in comparison.rows]
    twins = {name: means for name, means in twins.items() if any(m is not None for m in means)}
    header = ["method", metric, "± sd", "gap closed", *twins, "margin"]
    header += ["client passes", "client FLOPs"]
    rows = [
        [
            _name(row),
            _number(row.mean),
            _number(row.spread),
            NONE if row.gap_closed is None else f"{row.gap_closed:.2f}",
            *(_number(means[place]) for means in twins.values()),
            NONE if row.margin is None else f"{row.margin:+.4f}",
            _passes(row),
            human_count(row.summary.client_flops),
        ]
        for place, row in enumerate(comparison.rows)
    ]
    seeds = f"{len(comparison.seeds)} seeds" if len(comparison.seeds) != 1 else "one seed"
    title = f"Test {metric}, mean over {seeds}; a client's passes and FLOPs for each sample"
    return title, header, rows


def _name(row: Row) -> str:
    return f"{row.label} †" if row.apart else row.label


def _number(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.4f}"


def _passes(row: Row) -> str:
    """Return a client's passes for each sample: forwards, and backprops where there are some."""
    forwards, backprops = row.term("client_forwards"), row.term("client_backprops")
    if forwards is None:
        return NONE
    return f"{forwards} + {backprops} back" if backprops else str(forwards)


def _pace(row: Row) -> str:
    """Return what a step of the server half follows, and how often it goes over a round's."""
    pace, passes = row.term("server_pace") or NONE, row.term("server_passes") or 1
    return f"{pace}, {passes} passes" if passes > 1 else str(pace)


def _terms(rows: Sequence[Row]) -> Part:
    header = ["method", "server lr", "tried", "server steps", "one a", "server rate"]
    header += ["client rate", "client mode", "rounds"]
    lines = []
    for row in rows:
        steps = row.term("server_steps")
        lines.append(
            [
                _name(row),
                NONE if row.server_lr is None else f"{row.server_lr:g}",
                str(row.term("rates") or NONE),
                f"{steps:,}" if steps else NONE,
                _pace(row) if steps else NONE,
                row.term("server_schedule") or NONE,
                row.term("client_schedule") or NONE,
                row.term("client_mode") or NONE,
                f"{row.term('rounds'):,}",
            ]
        )
    return "On what terms; † differs from first order in more than the method", header, lines


def _cost(rows: Sequence[Row]) -> Part:
    header = ["method", "samples", "up", "down", "exchanges", "client peak", "seconds"]
    lines = [
        [
            row.label,
            f"{row.summary.samples:,}",
            human_bytes(row.summary.total("up")),
            human_bytes(row.summary.total("down")),
            f"{row.summary.exchanges:,}",
            human_bytes(row.summary.client_peak_bytes),
            f"{row.summary.seconds:.1f}",
        ]
        for row in rows
    ]
    return "Cost of a run, all clients", header, lines


def _numbers(comparison: Comparison, folder: Path) -> dict[str, Any]:
    return {
        "metric": comparison.metric,
        "seeds": comparison.seeds,
        "rows": [_row(row, comparison.metric, folder) for row in comparison.rows],
        "refused": comparison.refused,
        "notes": comparison.notes,
    }


def _row(row: Row, metric: str, folder: Path) -> dict[str, Any]:
    summary = row.summary.to_dict()
    del summary["metrics"], summary["method"]
    return {
        "label": row.label,
        "method": row.method,
        "mean": _finite(row.mean),
        "standard_deviation": _finite(row.spread),
        "gap_closed": _finite(row.gap_closed),
        "walk": _finite(row.walk),
        "at_rate_0": _finite(row.at_rate_0),
        "margin": _finite(row.margin),
        "apart": row.apart,
        "server_lr": row.server_lr,
        "rates_chosen_by": choice(row.runs, metric),
        "mean_by_server_lr": {f"{rate:g}": _finite(value) for rate, value in row.rates.items()},
        **summary,
        "runs": [_run(run, metric, folder) for run in row.runs],
    }


def _run(run: FinishedRun, metric: str, folder: Path) -> dict[str, Any]:
    inside = run.path.is_relative_to(folder)
    return {
        "seed": run.seed,
        "rounds": run.config["rounds"],
        "samples": run.summary.samples,
        metric: _finite(run.score(metric)),
        "directory": (run.path.relative_to(folder) if inside else run.path).as_posix(),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
