"""The sections of figures: at a glance, curves, bytes, and what a client needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sfl_flower.report.plots import Curve, mean_curve
from sfl_flower.report.table import CATEGORIES, NONE, human_bytes, human_count
from sfl_flower.reporting.charts import Axis, chart, swatches
from sfl_flower.reporting.gather import Gathered, Group
from sfl_flower.reporting.parts import Bar, Cell, Figure, Section, Sheet

__all__ = ["bars", "bytes_section", "cost_section", "curves_section", "glance", "number"]

_BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_MOST_ROWS = 60
"""Rows of a folded table; of more every second, third ... is shown, and the last."""


def number(value: float | None, metric: str = "") -> str:
    """Return a figure: accuracy with four digits, others with four significant ones."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.4f}" if metric.endswith("accuracy") else f"{value:.4g}"


def bars(values: Sequence[float | None], texts: Sequence[str]) -> list[Cell]:
    """Return numbers with bars; the longest is the largest of them."""
    most = max((value for value in values if value), default=0.0)
    return [
        Bar(text, value / most) if value and most else text
        for value, text in zip(values, texts, strict=True)
    ]


def glance(found: Gathered) -> Section:
    """Return the first table: what each came to, and what it cost."""
    metric = found.metric
    header = ["method", *([metric] if metric else []), "runs", "samples", "up", "down"]
    header += ["client memory", "client FLOPs a sample", "seconds", "state"]
    rows: list[list[Cell]] = []
    for group in found.groups:
        ways = [run.both_ways() for run in group.runs]
        states = list(dict.fromkeys(run.state for run in group.runs))
        rows.append(
            [
                group.label,
                *([_result(group, metric)] if metric else []),
                str(len(group.runs)),
                f"{group.mean([run.samples for run in group.runs]) or 0:,.0f}",
                human_bytes(round(group.mean([up for up, _ in ways]) or 0)),
                human_bytes(round(group.mean([down for _, down in ways]) or 0)),
                human_bytes(group.client_peak),
                human_count(group.client_flops),
                f"{group.mean([run.seconds for run in group.runs]) or 0:,.1f}",
                "; ".join(states),
            ]
        )
    caption = "Means over the runs (seeds) of a row; all clients together, but for memory"
    text = []
    if not metric:
        text.append("No round was evaluated yet, so there is no accuracy to show.")
    if any(run.summary is None for run in found.runs):
        text.append("Not every run is complete: what is shown goes as far as its files do.")
    if found.apart and len(found.groups) > 1:
        text.append(
            "These runs are not of one problem, so their figures cannot be held against each "
            f"other. They differ in {'; '.join(found.apart)}."
        )
    return Section("glance", "At a glance", text, tables=[Sheet(caption, header, rows)])


def _result(group: Group, metric: str) -> str:
    mean, spread = group.score(metric)
    tail = "" if spread is None or not math.isfinite(spread) else f" ± {number(spread, metric)}"
    return f"{number(mean, metric)}{tail}"


def curves_section(found: Gathered) -> Section | None:
    """Return the charts of the result against everything that it costs."""
    metric = found.metric
    if not metric:
        return None
    percent = metric.endswith("accuracy")
    figures = []
    for key, title, axis, curves in _axes(found):
        if any(curve is not None for curve in curves.values()):
            caption = f"{metric} against {title}"
            level = found.control if metric == "accuracy" else None
            svg = chart(f"curve-{key}", caption, curves, axis, metric, percent=percent, level=level)
            figures.append(Figure(svg, caption))
    text = [f"Test {metric} after each round that was evaluated."]
    if any(len(group.runs) > 1 for group in found.groups):
        text.append(
            "A curve of several runs (seeds) is their mean, in a band of one standard deviation on "
            "either side."
        )
    if found.control is not None:
        text.append("The dotted line is the best control: clients that are never trained.")
    if not any(axis == "flops" for axis, *_ in _axes(found)):
        text.append("The operations of clients were not measured, so there is no chart of them.")
    more = [_points(group, metric) for group in found.groups]
    legend = swatches([group.label for group in found.groups])
    title = f"{metric[:1].upper()}{metric[1:]} and what it took"
    return Section("curves", title, text, legend, figures, more=[s for s in more if s.rows])


def _axes(found: Gathered) -> Iterator[tuple[str, str, Axis, dict[str, Curve | None]]]:
    """Yield a key, a title, an axis and the curves over it, for each axis that is known."""
    for key, title in (
        ("round", "rounds"), ("samples", "training samples"), ("bytes", "bytes"),
        ("flops", "client operations"), ("seconds", "time"),
    ):  # fmt: skip
        curves: dict[str, Curve | None] = {}
        for group in found.groups:
            points = []
            for run in group.runs:
                xs, ys = run.history.series("samples" if key == "flops" else key, found.metric)
                if key == "flops":
                    if not run.client_flops:
                        continue
                    xs = [x * run.client_flops for x in xs]
                points.append((xs, ys))
            curves[group.label] = mean_curve(points)
        known = [float(curve.x[-1]) for curve in curves.values() if curve is not None]
        if known:
            yield key, title, _axis(key, max(known)), curves


def _axis(key: str, most: float) -> Axis:
    if key == "bytes":
        unit, name = next((u, n) for u, n in _BYTES if most >= u or u == 1)
        return Axis(f"bytes up and down, all clients ({name})", unit)
    if key == "flops":
        unit, name = next((u, n) for u, n in _COUNTS if most >= u or u == 1)
        return Axis(f"client operations, all clients ({name}FLOP)", unit)
    texts = {"samples": "training samples, all clients", "seconds": "wall-clock time (s)"}
    return Axis(texts.get(key, key))


def _points(group: Group, metric: str) -> Sheet:
    """Return the evaluated rounds of a row as a table: of its first run."""
    run = group.runs[0]
    records = [r for r in run.history if math.isfinite(r.metrics.get(metric, math.nan))]
    step = -(-len(records) // _MOST_ROWS) or 1
    shown = [*records[:-1:step], *records[-1:]]
    rows = [
        [f"{r.round:,}", number(r.metrics[metric], metric), number(r.loss), f"{r.samples:,}",
         human_bytes(r.bytes_up), human_bytes(r.bytes_down), f"{r.seconds:,.1f}"]
        for r in shown
    ]  # fmt: skip
    which = f", seed {run.seed}" if len(group.runs) > 1 else ""
    every = f", {len(shown)} of {len(records)} evaluations" if len(shown) < len(records) else ""
    header = ["round", metric, "training loss", "samples", "up", "down", "seconds"]
    return Sheet(f"Round by round: {group.label}{which}{every}", header, rows)


def bytes_section(found: Gathered) -> Section:
    """Return what travelled, by what it is."""
    groups = [group for group in found.groups if any(run.ledger for run in group.runs)]
    title = "Bytes by category"
    if not groups:
        said = "No bytes by category were written yet; a run writes them at checkpoints."
        return Section("bytes", title, [said])
    known = {name for group in groups for run in group.runs for name in run.ledger}
    names = [*(c for c in CATEGORIES if c in known), *sorted(known - {*CATEGORIES})]
    booked = {
        f"{name} {way}": [_booked(group, name, way) for group in groups]
        for name in names
        for way in ("up", "down")
    }
    for way in ("up", "down"):
        booked[f"all {way}"] = [sum(_booked(g, name, way) for name in names) for g in groups]
    booked = {key: counts for key, counts in booked.items() if any(counts)}
    if len(groups) == 1:  # beside one another; else each beside the other methods
        column = [counts[0] for counts in booked.values()]
        cells = [[cell] for cell in bars(column, [human_bytes(n) for n in column])]
    else:
        cells = [bars(counts, [human_bytes(n) for n in counts]) for counts in booked.values()]
    rows = [[key, *line] for key, line in zip(booked, cells, strict=True)]
    text = ["Up is from clients to the server."]
    if len(groups) > 1:
        text.append("A bar is as long as its number is beside the others of its row.")
    if any(run.summary is None for group in groups for run in group.runs):
        text.append("Of a run that is not complete these are the bytes up to its last checkpoint.")
    caption = "Bytes by category, all clients, means over the runs of a column"
    header = ["category", *(group.label for group in groups)]
    return Section("bytes", title, text, tables=[Sheet(caption, header, rows)])


def _booked(group: Group, name: str, way: str) -> int:
    counts = [float(run.ledger.get(name, {}).get(way, 0)) for run in group.runs if run.ledger]
    return round(group.mean(counts) or 0)


def cost_section(found: Gathered) -> Section:
    """Return what a client needs, by method."""
    peaks = [group.client_peak for group in found.groups]
    flops = [group.client_flops for group in found.groups]
    columns = [
        [group.label for group in found.groups],
        bars(peaks, [human_bytes(peak) for peak in peaks]),
        bars(flops, [human_count(count) for count in flops]),
        [_count(group.term("client_forwards")) for group in found.groups],
        [_count(group.term("client_backprops")) for group in found.groups],
        [_at_one_time(group) for group in found.groups],
        [_trained(group) for group in found.groups],
    ]
    header = ["method", "peak memory", "FLOPs a sample", "forwards", "backprops", "samples at once"]
    header += ["trained parameters"]
    text = [
        "Peak memory is the most that torch allocated on a client above what it held before.",
        "Forwards and backprops are a client's, for each sample it trains on.",
    ]
    if not any(peaks) or not any(flops):
        text.append("A dash stands where nothing was measured, or not yet.")
    rows = [list(row) for row in zip(*columns, strict=True)]
    sheet = Sheet("A client's memory and work, by method", header, rows)
    return Section("client-cost", "What a client needs", text, tables=[sheet])


def _count(value: object) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _at_one_time(group: Group) -> str:
    size = group.term("micro_batch")
    return NONE if size is None else str(size) if size else "a whole batch"


def _trained(group: Group) -> str:
    count = group.runs[0].facts.get("client_trained")
    return f"{count:,}" if isinstance(count, int) else NONE
