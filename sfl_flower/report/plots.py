"""Curves of one or more runs as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sfl_flower.errors import DataError
from sfl_flower.report.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_plot"]

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
    histories: Mapping[str, History],
    path: Path | str,
    x: str = "samples",
    metric: str = "accuracy",
    title: str | None = None,
) -> Path:
    """Draw one curve a run and write a PNG of 1200 x 720 pixels.

    The legend gives each curve's last value and lists the curves from the highest to the lowest.

    Parameters
    ----------
    histories : mapping of str to History
        Label of the curve and its run; the order decides the colours.
    path : Path or str
        Where to write the PNG.
    x : str
        Horizontal axis: one of the names :meth:`History.series` takes.
    metric : str
        Vertical axis: ``loss`` or a name in the records' ``metrics``. ``accuracy`` is drawn in
        percent.
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
    # Importing matplotlib takes a second, and clients never draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    curves = {label: history.series(x, metric) for label, history in histories.items()}
    if not any(xs for xs, _ in curves.values()):
        raise DataError(f"nothing to plot: no history has the metric {metric!r}")
    text, unit = AXIS[x]
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends: dict[str, float] = {}
    for index, (label, (xs, ys)) in enumerate(curves.items()):
        if not xs:
            continue
        ends[label] = ys[-1]
        axes.plot(
            [value / unit for value in xs],
            ys,
            label=f"{label}  {ys[-1]:.1%}" if metric == "accuracy" else f"{label}  {ys[-1]:.4g}",
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index % len(STYLES)],
            linewidth=2,
            marker="o" if len(xs) <= 12 else None,
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
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=12, pad=12)
    figure.savefig(path, format="png")
    return Path(path)


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
