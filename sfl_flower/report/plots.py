"""Curves of one or more runs as a PNG."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sfl_flower.errors import DataError
from sfl_flower.report.files import atomic_write
from sfl_flower.report.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "accuracy_plot", "mean_curve"]

# Okabe and Ito's palette: distinguishable with the common colour vision deficiencies.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# The line style tells the curves apart in print without colour.
STYLES = ("-", "--", "-.", (0, (1, 1)))
MIB = 2.0**20
AXIS = {
    "samples": ("training samples, all clients", 1.0),
    "bytes": ("bytes up and down, all clients (MiB)", MIB),
    "bytes_up": ("bytes up, all clients (MiB)", MIB),
    "bytes_down": ("bytes down, all clients (MiB)", MIB),
    "seconds": ("wall-clock time (s)", 1.0),
    "exchanges": ("exchanges, all clients", 1.0),
    "round": ("round", 1.0),
}
INK = "#333333"


def accuracy_plot(
    histories: Mapping[str, History | Sequence[History]],
    path: Path | str,
    x: str = "samples",
    metric: str = "accuracy",
    title: str | None = None,
    controls: Collection[str] = (),
) -> Path:
    """Draw one curve a run, or a group of runs, and write a PNG of 1200 x 720 pixels.

    A group, such as the seeds of a method, is drawn as its mean curve in a band of one standard
    deviation on either side. The legend gives each curve's last value and lists the curves from
    the highest to the lowest.

    Parameters
    ----------
    histories : mapping of str to History or sequence of History
        Label of the curve and its run or runs; the order decides the colours.
    path : Path or str
        Where to write the PNG.
    x : str
        Horizontal axis: one of the names :meth:`History.series` takes.
    metric : str
        Vertical axis: ``loss`` or a name in the records' ``metrics``. ``accuracy`` is drawn in
        percent.
    title : str, optional
        Text above the plot; the metric and what it is drawn over when left out. Below it stands
        what the bands are.
    controls : collection of str
        Labels of runs whose clients are not trained; a dotted line goes on at the best last value
        among them, which the others have to pass.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    DataError
        If `x` is unknown or no history has the metric.
    """
    # Importing matplotlib takes a second, and clients never draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    curves = {
        label: mean_curve(
            [run.series(x, metric) for run in ([runs] if isinstance(runs, History) else runs)]
        )
        for label, runs in histories.items()
    }
    if not any(curve is not None for curve in curves.values()):
        raise DataError(f"nothing to plot: no history has the metric {metric!r}")
    text, unit = AXIS[x]
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends: dict[str, float] = {}
    for index, (label, curve) in enumerate(curves.items()):
        if curve is None:
            continue
        last = ends[label] = float(curve.y[-1])
        colour = COLOURS[index % len(COLOURS)]
        if curve.spread is not None:
            low, high = curve.y - curve.spread, curve.y + curve.spread
            axes.fill_between(curve.x / unit, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            curve.x / unit,
            curve.y,
            label=f"{label}  {last:.1%}" if metric == "accuracy" else f"{label}  {last:.4g}",
            color=colour,
            linestyle=STYLES[index % len(STYLES)],
            linewidth=2,
            marker="o" if len(curve.x) <= 12 else None,
            markersize=4,
        )
    axes.set_xlabel(text, color=INK)
    axes.set_ylabel(metric, color=INK)
    _legend(axes, list(ends.values()))
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    _clean(axes)
    held = [ends[label] for label in controls if label in ends]
    if held:
        axes.axhline(max(held), color=INK, linestyle=(0, (1, 3)), linewidth=1.2, zorder=1.5)
        axes.text(
            0.99, max(held), "control", transform=axes.get_yaxis_transform(), color=INK, fontsize=9,
            ha="right", va="bottom",
        )  # fmt: skip
    axes.set_title(title or f"{metric} over {text}", loc="left", color=INK, fontsize=12, pad=20)
    axes.text(0, 1.02, _bands(histories), transform=axes.transAxes, color="#777777", fontsize=9)
    target = Path(path).expanduser()
    atomic_write(target, lambda tmp: figure.savefig(tmp, format="png"))
    return target


def _bands(histories: Mapping[str, History | Sequence[History]]) -> str:
    """Return what a curve is made of: one run, or the mean of some in a band of their spread."""
    counts = sorted({1 if isinstance(h, History) else len(h) for h in histories.values()})
    if counts in ([1], []):
        return "one run a curve"
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {number} runs (seeds) a curve, band: one standard deviation on either side"


@dataclass(frozen=True)
class Curve:
    """A mean curve and its standard deviation; no deviation of a single run."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64] | None


def mean_curve(points: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Curve | None:
    """Return the mean curve of runs; None when none has a point.

    Runs are averaged at equal shares of their points, along both axes, so that those that
    differ in time, bytes or evaluations all count up to their last point.

    Parameters
    ----------
    points : sequence of pair of sequence of float
        Of each run xs and ys, of equal length.
    """
    series = [pair for pair in points if len(pair[0])]
    if not series:
        return None
    shares = [np.linspace(0.0, 1.0, len(xs)) for xs, _ in series]
    union = np.unique(np.concatenate(shares)) if len(set(map(len, shares))) > 1 else shares[0]
    xs, ys = (
        np.stack([np.interp(union, t, s[axis]) for t, s in zip(shares, series, strict=True)])
        for axis in (0, 1)
    )
    spread = ys.std(axis=0, ddof=1) if len(series) > 1 else None
    return Curve(xs.mean(axis=0), ys.mean(axis=0), spread)


def _legend(axes: Axes, ends: list[float]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(ends)), key=lambda index: -ends[index])
    axes.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        frameon=True,
        framealpha=0.9,
        edgecolor="none",
        handlelength=2.8,
        labelcolor=INK,
    )


def _clean(axes: Axes) -> None:
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.tick_params(color="#aaaaaa", labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#aaaaaa")
