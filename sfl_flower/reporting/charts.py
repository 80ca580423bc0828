"""Charts as inline SVG: text stays text, and colours are the page's own, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sfl_flower.report.plots import Curve
from sfl_flower.reporting.parts import Swatch

__all__ = ["Axis", "chart", "swatches"]

COLOURS = 7
"""Series colours of the page, ``--s0`` to ``--s6``; then they begin again with other dashes."""
_DASHES = ((), (6, 2.5), (6, 2, 1.5, 2), (1.5, 2))
_MOST_POINTS = 400
# Colours that stand for variables of the page, which takes their place in the finished SVG.
_INK, _FAINT, _SERIES = "#010101", "#020202", "#0300"
_SIZE = (4.4, 3.1)
"""Inches, of 72 units each: on a telephone a unit is about a pixel, so text stays readable."""


@dataclass(frozen=True)
class Axis:
    """What a chart is drawn over.

    Attributes
    ----------
    text : str
        Its name, with the unit.
    unit : float
        What one of it is.
    """

    text: str
    unit: float = 1.0


def swatches(labels: Sequence[str]) -> list[Swatch]:
    """Return the legend of curves in this order."""
    return [
        Swatch(label, f"--s{place % COLOURS}", " ".join(f"{n:g}" for n in _dashes(place)))
        for place, label in enumerate(labels)
    ]


def _dashes(place: int) -> tuple[float, ...]:
    return _DASHES[(place + place // COLOURS) % len(_DASHES)]


def chart(
    key: str,
    title: str,
    curves: Mapping[str, Curve | None],
    x: Axis,
    y: str,
    *,
    percent: bool = False,
    level: float | None = None,
) -> str:
    """Draw curves, with a title and a description for who does not see them.

    Parameters
    ----------
    key : str
        Begins every identifier in the drawing; one chart of a page has it.
    title : str
        What it shows.
    curves : mapping of str to Curve
        By label, in the order of the legend; None for one without points.
    x : Axis
        The horizontal axis.
    y : str
        Name of the vertical axis.
    percent : bool
        Whether y is a share, shown in percent.
    level : float, optional
        Where a dotted line says ``control``.

    Returns
    -------
    str
        One ``<svg>`` element.
    """
    # Importing matplotlib takes a second, and nothing else here needs it.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    fixed: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False,
             "font.family": "sans-serif", "font.size": 10}  # fmt: skip
    with rc_context(fixed):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, curve in enumerate(curves.values()):
            if curve is None:
                continue
            colour = f"{_SERIES}{place % COLOURS:02x}"
            step = max(1, len(curve.x) // _MOST_POINTS)
            rows = slice((len(curve.x) - 1) % step, None, step)  # the last point is one of them
            xs, ys = curve.x[rows] / x.unit, curve.y[rows]
            if curve.spread is not None:
                band = curve.spread[rows]
                axes.fill_between(xs, ys - band, ys + band, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                xs, ys, color=colour, linewidth=1.8, dashes=_dashes(place),
                marker="o" if len(xs) <= 12 else None, markersize=3,
            )  # fmt: skip
        axes.set_xlabel(x.text, color=_INK)
        axes.set_ylabel(y, color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.grid(True, color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        axes.tick_params(color=_FAINT, labelcolor=_INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
        if level is not None:
            axes.axhline(level, color=_INK, linestyle=(0, (1, 3)), linewidth=1.2, zorder=1.5)
            axes.text(0.99, level, "control", transform=axes.get_yaxis_transform(), color=_INK,
                      fontsize=9, ha="right", va="bottom")  # fmt: skip
        buffer = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    show: Callable[[float], str] = (lambda v: f"{v:.1%}") if percent else (lambda v: f"{v:.4g}")
    said = "; ".join(
        f"{label}: {show(float(curve.y[0]))} at the first point, {show(float(curve.y[-1]))} at "
        f"{curve.x[-1] / x.unit:,.6g}"
        for label, curve in curves.items()
        if curve is not None
    )
    return _inline(buffer.getvalue(), key, title, f"{y} over {x.text}. {said}.")


def _inline(svg: str, key: str, title: str, description: str) -> str:
    """Make a file of matplotlib's an element of a page, with colours and names of its own."""
    body = svg[svg.index("<svg") :]
    inner = body[body.index(">") + 1 : body.rindex("</svg>")]
    box = re.search(r'viewBox="([^"]+)"', body)
    # Its style would be the whole page's, and its metadata say nothing here.
    inner = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", inner, flags=re.S)
    used = set(re.findall(r'(?:url\(|xlink:href=")#([^")]+)', inner))
    inner = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", inner)
    inner = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", inner)
    inner = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{key}-\1"', inner)
    inner = inner.replace(_INK, "var(--ink)").replace(_FAINT, "var(--line)")
    inner = re.sub(rf"{_SERIES}0([0-9a-f])", r"var(--s\1)", inner)
    inner = re.sub(r" font-family: [^;\"]*;", "", inner)  # that of the page
    inner = re.sub(r"\n\s*", "\n", inner)
    return (
        f'<svg viewBox="{box[1] if box else ""}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(description)}</desc>{inner}</svg>'
    )
