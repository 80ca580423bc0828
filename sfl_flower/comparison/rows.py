"""A comparison of methods: what is computed from their runs, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.report.table import Summary

__all__ = ["CEILING", "CONTROL", "Comparison", "Row", "assemble", "make_row"]

CONTROL, CEILING = "frozen", "splitfed_v2"
"""The methods between which the gap lies."""


@dataclass(frozen=True)
class Row:
    """A method at its best server rate.

    Attributes
    ----------
    label : str
        Its name in the table: the method's, with the options that tell it from another row.
    method : str
        Name of the method.
    server_lr : float or None
        The rate with the highest mean; None for a method that has none.
    rates : Mapping[float, float]
        Mean over the seeds of each rate that ran with all of them.
    runs : tuple of FinishedRun
        The runs at the best rate, by seed.
    mean : float
        Mean of the metric over the seeds.
    spread : float or None
        Standard deviation over the seeds (divided by their number less one); None with one seed.
    summary : Summary
        Mean over the seeds of samples, bytes, exchanges, operations and seconds; largest memory.
    gap_closed : float or None
        (method - control) / (ceiling - control); None where the ceiling is not above the control.
    """

    label: str
    method: str
    server_lr: float | None
    rates: Mapping[float, float]
    runs: tuple[FinishedRun, ...]
    mean: float
    spread: float | None
    summary: Summary
    gap_closed: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Attributes
    ----------
    metric : str
        The evaluation result that is compared.
    seeds : tuple of int
        The seeds of every row.
    rows : tuple of Row
        In the order of the table.
    refused : Mapping[str, str]
        Rows that are left out, and why.
    notes : tuple of str
        What a reader should know.
    out : Path or None
        Where it was written.
    """

    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    refused: Mapping[str, str]
    notes: tuple[str, ...]
    out: Path | None = None

    def __getitem__(self, label: str) -> Row:
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(label)


def make_row(
    label: str,
    runs: Sequence[FinishedRun],
    seeds: Sequence[int],
    metric: str,
) -> Row:
    """Return the row of a method: its runs at the server rate with the highest mean.

    Parameters
    ----------
    label : str
        Its name in the table.
    runs : sequence of FinishedRun
        All its runs; a rate counts when it has a run of every seed.
    seeds : sequence of int
        The seeds.
    metric : str
        What is compared.
    """
    by_rate: dict[float, dict[int, FinishedRun]] = {}
    for run in runs:
        by_rate.setdefault(run.server_lr, {})[run.seed] = run
    whole = {rate: found for rate, found in by_rate.items() if set(seeds) <= found.keys()}
    rates = {
        rate: mean(found[seed].score(metric) for seed in seeds)
        for rate, found in sorted(whole.items())
    }
    best = max(rates, key=lambda rate: -math.inf if math.isnan(rates[rate]) else rates[rate])
    chosen = tuple(whole[best][seed] for seed in seeds)
    scores = [run.score(metric) for run in chosen]
    return Row(
        label=label,
        method=chosen[0].method,
        server_lr=best if chosen[0].summary.server_lr else None,
        rates=rates,
        runs=chosen,
        mean=rates[best],
        spread=stdev(scores) if len(scores) > 1 else None,
        summary=_mean_summary(label, [run.summary for run in chosen], rates[best], metric),
    )


def assemble(
    rows: Sequence[Row],
    seeds: Sequence[int],
    metric: str,
    refused: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Put rows side by side: the gap that each closes, and what a reader should know."""
    control = _strongest(rows, CONTROL)
    ceiling = _strongest(rows, CEILING)
    remarks = [*notes]
    for name, row in ((CONTROL, control), (CEILING, ceiling)):
        if row is None:
            remarks.append(f"There is no {name} among the rows, so no gap is known.")
    if len(seeds) == 1:
        remarks.append("With one seed there is no spread, so small differences may be chance.")
    if control is not None and ceiling is not None:
        gap = ceiling.mean - control.mean
        if gap > 0:
            rows = [replace(row, gap_closed=(row.mean - control.mean) / gap) for row in rows]
        else:
            remarks.append(
                f"{CEILING} ({ceiling.mean:.4f}) is not above {CONTROL} ({control.mean:.4f}), so "
                "there is no gap to close."
            )
    if control is not None:
        remarks += [_verdict(row, control) for row in rows if not _beats(row, control)]
    return Comparison(metric, tuple(seeds), tuple(rows), dict(refused or {}), tuple(remarks))


def _strongest(rows: Sequence[Row], method: str) -> Row | None:
    return max((r for r in rows if r.method == method), key=lambda r: r.mean, default=None)


def _beats(row: Row, control: Row) -> bool:
    if row.method == CONTROL:
        return True
    return row.mean - control.mean > max(row.spread or 0.0, control.spread or 0.0)


def _verdict(row: Row, control: Row) -> str:
    text = f"{row.label} ({row.mean:.4f}) does not beat the {CONTROL} control ({control.mean:.4f})"
    if row.mean <= control.mean or row.spread is None or control.spread is None:
        return f"{text}."
    spread = max(row.spread, control.spread)
    return f"{text} by more than the spread over the seeds ({spread:.4f})."


def _mean_summary(label: str, runs: Sequence[Summary], score: float, metric: str) -> Summary:
    categories = dict.fromkeys(name for run in runs for name in run.ledger)
    peaks = [run.client_peak_bytes for run in runs if run.client_peak_bytes]
    flops = [run.client_flops for run in runs if run.client_flops]
    return Summary(
        method=label,
        metrics={metric: score},
        samples=round(mean(run.samples for run in runs)),
        ledger={
            name: {
                way: round(mean(run.ledger.get(name, {}).get(way, 0) for run in runs))
                for way in ("up", "down")
            }
            for name in categories
        },
        exchanges=round(mean(run.exchanges for run in runs)),
        client_peak_bytes=max(peaks, default=None),
        seconds=mean(run.seconds for run in runs),
        client_flops=mean(flops) if flops else None,
    )
