"""Curves of one or more runs as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from sfl_flower.errors import DataError
from sfl_flower.report.history import History

__all__ = ["accuracy_plot"]

# Okabe and Ito's palette, distinguishable with the common colour vision deficiencies.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":")
MIB = 2**20
AXIS = {
    "samples": ("training samples, all clients", 1.0),
    "bytes": ("traffic, up and down, all clients (MiB)", MIB),
    "bytes_up": ("traffic up, all clients (MiB)", MIB),
    "bytes_down": ("traffic down, all clients (MiB)", MIB),
    "seconds": ("wall-clock time (s)", 1.0),
    "exchanges": ("exchanges, all clients", 1.0),
    "round": ("round", 1.0),
}


def accuracy_plot(
    histories: Mapping[str, History],
    path: Path | str,
    x: str = "samples",
    metric: str = "accuracy",
    title: str | None = None,
) -> Path:
    """Draw one curve a run and write a PNG of 1200 x 750 pixels.

    Parameters
    ----------
    histories : mapping of str to History
        Label of the curve and its run, in the order of the legend.
    path : Path or str
        Where to write the PNG.
    x : str
        Horizontal axis: one of the names :meth:`History.series` takes.
    metric : str
        Vertical axis: ``loss`` or a name in the records' ``metrics``.
    title : str, optional
        Text above the plot.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    DataError
        If `x` is unknown or no history has the metric.
    """
    curves = {label: history.series(x, metric) for label, history in histories.items()}
    if not any(xs for xs, _ in curves.values()):
        raise DataError(f"nothing to plot: no history has the metric {metric!r}")
    text, unit = AXIS[x]
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (label, (xs, ys)) in enumerate(curves.items()):
        axes.plot(
            [value / unit for value in xs],
            ys,
            label=label,
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index % len(STYLES)],
            linewidth=2,
        )
    axes.set_xlabel(text)
    axes.set_ylabel(metric)
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title, loc="left")
    figure.savefig(path, format="png")
    return Path(path)
