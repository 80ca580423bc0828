"""Rows side by side: the gap that each closes, its margin, and what a reader should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sfl_flower.comparison.rows import CEILING, CONTROL, Comparison, Row, choice
from sfl_flower.comparison.twins import TWINS, best_twins, learns_by_forwards, twin_of, walked

__all__ = ["assemble"]

TERMS = {
    "client_mode": "client mode",
    "server_pace": "server steps",
    "server_passes": "server passes",
    "server_schedule": "server schedule",
    "client_schedule": "client schedule",
    "rates": "server rates tried",
    "rounds": "rounds",
}
"""In what a row may differ from the first-order row beside the method, and its name for people."""


def assemble(
    rows: Sequence[Row],
    seeds: Sequence[int],
    metric: str,
    refused: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    twins: Mapping[str, Sequence[Row]] | None = None,
) -> Comparison:
    """Put rows side by side: the gap that each closes, and what a reader should know.

    Parameters
    ----------
    rows : sequence of Row
        In the order of the table.
    seeds : sequence of int
        The seeds of every row.
    metric : str
        What is compared.
    refused : Mapping[str, str], optional
        Rows that are left out, and why.
    notes : sequence of str, optional
        What a reader should know first.
    twins : Mapping[str, sequence of Row], optional
        By the label of a row, its own walks, a row for each client rate, and itself at a client
        rate of 0.
    """
    twins = twins or {}
    remarks = [*notes]
    controls = [row for row in rows if row.method == CONTROL]
    control, ceiling = _strongest(controls), _strongest([r for r in rows if r.method == CEILING])
    for name, found in ((CONTROL, control), (CEILING, ceiling)):
        if found is None:
            remarks.append(f"There is no {name} among the rows, so no gap is known.")
    if len(seeds) == 1:
        remarks.append("With one seed there is no spread, so small differences may be chance.")
    if any(row.tried > 1 and choice(row.runs, metric) == metric for row in rows):
        remarks.append("Server rates are chosen on the test set, so the figures are slightly high.")
    beside = {row.label: best_twins(twins.get(row.label, ())) for row in rows}
    rows = [_beside(row, control, beside[row.label], ceiling) for row in rows]
    if control is not None and ceiling is not None:
        gap = ceiling.mean - control.mean
        if gap > 0:
            rows = [replace(row, gap_closed=(row.mean - control.mean) / gap) for row in rows]
        else:
            remarks.append(
                f"{ceiling.label} ({ceiling.mean:.4f}) is not above {control.label} "
                f"({control.mean:.4f}), so there is no gap to close."
            )
    for row in rows:
        if control is not None and row.method != CONTROL and not _above(row, control):
            remarks.append(_verdict(row, control, "does not beat the control"))
        for kind, words in TWINS.items():
            own = beside[row.label].get(kind)
            if own is not None and not _above(row, own):
                remarks.append(_verdict(row, own, f"is not above its own {words}"))
        if (walk := beside[row.label].get("walk")) is not None:
            remarks.append(walked(row, walk, twins[row.label]))
        if row.apart:
            what = "; ".join(row.apart)
            remarks.append(f"† {row.label} differs from {CEILING} in more than the method; {what}.")
        if learns_by_forwards(row.runs[0]) and not twin_of(row.runs[0]) and row.margin is None:
            remarks.append(
                f"{row.label} has no walk and no run at a client rate of 0 beside it, so how much "
                "of its figure its clients learned is not known."
            )
    return Comparison(metric, tuple(seeds), tuple(rows), dict(refused or {}), tuple(remarks))


def _beside(row: Row, control: Row | None, twins: Mapping[str, Row], ceiling: Row | None) -> Row:
    """Return a row with what it is held against and what sets it apart from the first-order row."""
    if ceiling is not None and row.method != CEILING:
        apart = []
        for name, words in TERMS.items():
            ours, theirs = row.term(name), ceiling.term(name)
            if ours and theirs and ours != theirs:
                apart.append(f"{words}: {ours}, not {theirs}")
        row = replace(row, apart=tuple(apart))
    walk, still = (twin.mean if (twin := twins.get(kind)) else None for kind in TWINS)
    held = [mean for mean in (walk, still, control.mean if control else None) if mean is not None]
    margin = row.mean - max(held) if twins else None
    return replace(row, walk=walk, at_rate_0=still, margin=margin)


def _strongest(rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: row.mean, default=None)


def _above(row: Row, other: Row) -> bool:
    return row.mean - other.mean > max(row.spread or 0.0, other.spread or 0.0)


def _verdict(row: Row, other: Row, words: str) -> str:
    named = f" {other.label}" if other.method == CONTROL else ""
    text = f"{row.label} ({row.mean:.4f}) {words}{named} ({other.mean:.4f})"
    if row.mean <= other.mean or row.spread is None or other.spread is None:
        return f"{text}."
    spread = max(row.spread, other.spread)
    return f"{text} by more than the spread over the seeds ({spread:.4f})."
