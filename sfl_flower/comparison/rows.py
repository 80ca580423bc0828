"""A comparison of methods: what is computed from their runs, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.report.table import Summary
from sfl_flower.server.evaluation import VALIDATION

__all__ = ["CEILING", "CONTROL", "Comparison", "Row", "choice", "make_row"]

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
        Mean over the seeds, of what rates are chosen by, of each rate that ran with all of them.
    tried : int
        How many rates were tried.
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
    walk : float or None
        Mean of the same method whose clients walk at random, at the client rate and server rate
        that are best for that; None where there is no such row.
    at_rate_0 : float or None
        Mean of the same method at a client rate of 0, at its own best server rate; None where there
        is no such row.
    margin : float or None
        How far the row is above the highest of control, walk and itself at rate 0; None where
        there is neither of the last two.
    apart : tuple of str
        In what the row differs from the first-order row beside the method.
    """

    label: str
    method: str
    server_lr: float | None
    rates: Mapping[float, float]
    tried: int
    runs: tuple[FinishedRun, ...]
    mean: float
    spread: float | None
    summary: Summary
    gap_closed: float | None = None
    walk: float | None = None
    at_rate_0: float | None = None
    margin: float | None = None
    apart: tuple[str, ...] = ()

    def term(self, name: str) -> Any:
        """Return one of the terms it was trained on; empty or None where it has none."""
        if name == "rates":
            return self.tried if self.server_lr is not None else None
        if name == "rounds":
            return self.runs[0].config["rounds"]
        return self.summary.terms.get(name)


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
    by = choice(runs, metric)
    rates = {
        rate: mean(found[seed].score(by) for seed in seeds) for rate, found in sorted(whole.items())
    }
    best = max(rates, key=lambda rate: -math.inf if math.isnan(rates[rate]) else rates[rate])
    chosen = tuple(whole[best][seed] for seed in seeds)
    scores = [run.score(metric) for run in chosen]
    return Row(
        label=label,
        method=chosen[0].method,
        server_lr=best if chosen[0].summary.server_lr else None,
        rates=rates,
        tried=len(by_rate),
        runs=chosen,
        mean=mean(scores),
        spread=stdev(scores) if len(scores) > 1 else None,
        summary=_mean_summary(label, [run.summary for run in chosen], mean(scores), metric),
    )


def choice(runs: Sequence[FinishedRun], metric: str) -> str:
    """Return the result that server rates are chosen by.

    Parameters
    ----------
    runs : sequence of FinishedRun
        The runs among which is chosen.
    metric : str
        What is compared on the test set.

    Returns
    -------
    str
        The same on the samples held back, where all runs have it; else `metric`.
    """
    held = f"{VALIDATION}{metric}"
    return held if all(held in run.summary.metrics for run in runs) else metric


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
        terms={
            **runs[0].terms,
            "server_steps": round(mean(run.terms.get("server_steps", 0) for run in runs)),
        },
    )
