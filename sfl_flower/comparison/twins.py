"""Forward-only methods once more where their clients learn nothing: as a walk, or at rate 0."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.rows import Row

__all__ = ["TWINS", "best_twins", "learns_by_forwards", "take_twins", "twin_of", "walked"]

TWINS = {"walk": "walk", "still": "run at a client rate of 0"}
"""Runs of a method whose clients learn nothing, and what people call them."""


def learns_by_forwards(run: FinishedRun | Row) -> bool:
    """Tell whether clients of a run, or of a row, train by forwards alone."""
    return run.summary.terms.get("client") == "zeroth order"


def twin_of(run: FinishedRun) -> str:
    """Return what a run of forward-only clients that learn nothing is, else the empty text.

    Returns
    -------
    {"walk", "still", ""}
        A walk, or a run at a client rate of 0.
    """
    if not learns_by_forwards(run):
        return ""
    if run.config.get("client_lr") == 0:
        return "still"
    return "walk" if run.config.get("walk") else ""


def best_twins(twins: Sequence[Row]) -> dict[str, Row]:
    """Return of each kind the row that is chosen as server rates are."""
    found: dict[str, list[Row]] = {}
    for row in twins:
        found.setdefault(twin_of(row.runs[0]), []).append(row)
    return {kind: max(rows, key=_chosen_by) for kind, rows in found.items()}


def _chosen_by(row: Row) -> float:
    return max(-math.inf if math.isnan(value) else value for value in row.rates.values())


def walked(row: Row, walk: Row, twins: Sequence[Row]) -> str:
    """Say at which client rate a walk counts, for it has a best one of its own."""
    walks = [twin.runs[0] for twin in twins if twin_of(twin.runs[0]) == "walk"]
    tried = ", ".join(f"{rate:g}" for rate in sorted(run.config["client_lr"] for run in walks))
    rate, own = walk.runs[0].config["client_lr"], row.runs[0].config["client_lr"]
    if len(walks) > 1:
        return f"The walk of {row.label} is at client rate {rate:g}, the best of {tried}."
    where = "the row's own client rate" if rate == own else f"client rate {rate:g}"
    return (
        f"The walk of {row.label} is at {where} alone ({rate:g}); a walk has a best rate of its "
        "own, so the margin may be too high (--walk-rates tries others)."
    )


def take_twins(
    runs: Sequence[FinishedRun],
) -> tuple[list[FinishedRun], dict[str, dict[Path, list[FinishedRun]]]]:
    """Take out the runs of forward-only clients that learn nothing: walks, and those at rate 0.

    Parameters
    ----------
    runs : sequence of FinishedRun
        All runs.

    Returns
    -------
    rows : list of FinishedRun
        Those that are rows: all others, and those that belong to none of them.
    twins : dict of str to dict of Path to list of FinishedRun
        Of "walk" and "still": by the directory of a run, those that are its own walks, at whatever
        client rate, or its own at rate 0; equal in all else.
    """

    def key(run: FinishedRun) -> str:
        return json.dumps({**run.settings, "client_lr": None, "walk": None}, sort_keys=True)

    learning = [run for run in runs if not twin_of(run)]
    known = {key(run) for run in learning}
    rows, by_key = [*learning], dict[tuple[str, str], list[FinishedRun]]()
    for run in runs:
        if kind := twin_of(run):
            by_key.setdefault((kind, key(run)), []).append(run)
            rows += [] if key(run) in known else [run]
    return rows, {
        kind: {run.path: by_key.get((kind, key(run)), []) for run in learning}
        for kind in ("walk", "still")
    }
