"""Curves of results, drawn from the tables of their pages: ``python -m benchmarks.curves``.

It trains nothing.  It reads the tables of `docs/results/` and writes one SVG a page of `PAGES` to
`docs/curves/`, so that a plot says what its page says; a test holds the files against the pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfl_flower.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLOTS", "Panel", "Series", "drawn", "main", "panels"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS, CURVES = ROOT / "docs" / "results", ROOT / "docs" / "curves"
Row = Mapping[str, str]

BLUE, RED, GREEN, PINK, SKY, ORANGE, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Points of a table, (x, accuracy, standard deviation over seeds or None)."""

    label: str
    points: tuple[tuple[float, float, float | None], ...]
    colour: str
    line: str = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """Series in one pair of axes; `ticks` are the values, or the names, along x."""

    title: str
    about: str
    series: tuple[Series, ...]
    limits: tuple[float, float]
    level: float | None = None
    ticks: tuple[float | str, ...] = ()


def table(page: str, heading: str) -> list[Row]:
    """Return the rows of the first table with a mean below a heading of a page, by column.

    Parameters
    ----------
    page : str
        Name of the page in `docs/results/`.
    heading : str
        The heading, without its marks; empty for the page's title.

    Raises
    ------
    ConfigError
        There is no such heading or table.
    """
    text = (RESULTS / page).read_text(encoding="utf-8")
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        title, body = part.split("\n", 1)
        if heading and title != heading:
            continue
        for block in re.findall(r"(?:^\|.*\n)+", body + "\n", flags=re.MULTILINE):
            head, _, *lines = [
                [cell.strip() for cell in line.strip().strip("|").split("|")]
                for line in block.splitlines()
            ]
            if "mean" in head:
                return [dict(zip(head, cells, strict=True)) for cells in lines]
        break
    raise ConfigError(f"docs/results/{page} has no table of means below {heading!r}.")


def mean(row: Row) -> tuple[float, float | None]:
    """Return mean and standard deviation of a row."""
    spread = row.get("±") or row.get("± sd") or ""
    found = float(row["mean"].strip("*"))
    return found, float(spread) if re.fullmatch(r"[\d.]+", spread) else None


def rates(row: Row, server: str = "") -> tuple[tuple[float, float, None], ...]:
    """Return (client rate, accuracy on held back samples), at one server rate where there are some.

    Parameters
    ----------
    row : mapping of str to str
        With a column that begins with "held back".
    server : str
        The server rate.
    """
    (cell,) = [value for name, value in row.items() if name.startswith("held back")]
    found = re.findall(rf"([\d.]+){re.escape(f' ({server})') if server else ''}: ([\d.]+)", cell)
    return tuple(sorted((float(rate), float(share), None) for rate, share in found))


def named(rows: Sequence[Row], label: str, after: str = "") -> Row:
    """Return the row of that label; `after`, where several have it, is the one it follows.

    Raises
    ------
    ConfigError
        No row, or more than one, is it.
    """
    found = [
        row
        for last, row in zip([{}, *rows], rows, strict=False)
        if row["row"] == label and (not after or last.get("row") == after)
    ]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} rows are {label!r} after {after!r}; a page has changed.")
    return found[0]


def digits() -> tuple[Panel, ...]:
    """Probes, μ and client rates on the digits."""
    base = table("sensitivity.md", "The base")
    probes, scales = table("sensitivity.md", "Probes"), table("sensitivity.md", "μ")
    frozen, _ = mean(named(base, "frozen client"))
    trained = [row for row in probes if row["row"].startswith("HO-SFL")]
    walks = [(1.0, named(probes, "walk of HO-SFL")), (8.0, named(base, "walk of HO-SFL, P = 8"))]
    along = [row for row in scales if row["row"] == "HO-SFL"]
    sizes = [float(row["μ"].split()[0]) for row in along]
    counts = [float(row["P"]) for row in trained]
    one, eight = (rates(row) for _, row in walks)
    tuned = [
        Series(f"P = {row['P']}", rates(row), colour)
        for row, colour in zip(trained, (SKY, GREEN, BLUE, PINK, ORANGE), strict=True)
    ]
    low_high = (0.0, 1.0)
    return (
        Panel(
            "probes", "P; test accuracy, each at a client rate of its own",
            (
                Series("HO-SFL", points(counts, trained), BLUE),
                Series("walk", points([at for at, _ in walks], [row for _, row in walks]), RED,
                       ":", "x"),
            ),
            low_high, frozen, tuple(counts),
        ),
        Panel(
            "μ", "μ; test accuracy, P = 8",
            (
                Series("HO-SFL", points(sizes, along), BLUE),
                Series("walk", points([1e-3], [named(scales, "walk of HO-SFL")]), RED, ":", "x"),
            ),
            low_high, frozen, tuple(sizes),
        ),
        Panel(
            "client rate", "client rate; held back accuracy, seed 0",
            (
                *tuned,
                Series("walk, P = 1", one, RED, ":", "x"),
                Series("walk, P = 8", eight, BLACK, ":", "x"),
            ),
            low_high, None, (0.01, 0.05, 0.2, 0.8),
        ),
    )  # fmt: skip


def points(
    places: Sequence[float], rows: Sequence[Row]
) -> tuple[tuple[float, float, float | None], ...]:
    """Return a point for each row."""
    return tuple((x, *mean(row)) for x, row in zip(places, rows, strict=True))


def trained() -> tuple[Panel, ...]:
    """Choices of parameters on Fashion-MNIST and on a pre-trained net, and client rates there."""
    few = table("few_forwards.md", "")
    conv = "HO-SFL, `subspace:16:conv2`"
    channel = "HO-SFL, the same, `scalars=channel`"
    fashion = (
        Series(
            "HO-SFL, P = 4",
            points([0, 1, 2], [named(few, f"{name}, P = 4") for name in (
                "HO-SFL, all weights", conv, channel)]),
            BLUE,
        ),
        Series(
            "HO-SFL, P = 1",
            points([1, 2], [named(few, f"{conv}, P = 1"), named(few, f"{channel}, P = 1")]),
            GREEN,
        ),
        Series(
            "walk, P = 4",
            points([0, 1], [
                named(few, "walk, all weights, P = 4"),
                named(few, "walk, the same", f"{conv}, P = 4"),
            ]),
            RED, ":", "x",
        ),
        Series(
            "walk, P = 1",
            points([1, 2], [
                named(few, "walk, the same", f"{conv}, P = 1"),
                named(few, "walk, the same", f"{channel}, P = 1"),
            ]),
            ORANGE, ":", "x",
        ),
        Series(
            "first order, the same weights",
            points([0, 1, 2], [
                named(few, "SplitFed V2, all weights"),
                *[named(few, "SplitFed V2, `subspace:16:conv2`")] * 2,
            ]),
            BLACK, "--", "s",
        ),
    )  # fmt: skip
    net = table("learn.md", "A pre-trained net: EfficientNet-Lite0 on CIFAR-10")
    four = named(net, "HO-SFL, `subspace:16`, `scalars=channel`, P = 4")
    single = named(net, "HO-SFL, the same, P = 1")
    still = named(net, "walk, the same", four["row"]), named(net, "walk, the same", single["row"])
    whole = named(net, "HO-SFL, `subspace:16`, one scalar, P = 4")
    first = [
        named(net, f"SplitFed V2, {name}")
        for name in ("`subspace:16`", "all of the last convolution", "all weights")
    ]
    server = "0.003"
    column = "held back, seed 0, by client rate (and server rate)"
    frozen = re.search(rf"\({server}\): ([\d.]+)", named(net, "frozen client")[column])
    assert frozen is not None
    efficientnet = (
        Series("HO-SFL, P = 4", points([0, 1], [whole, four]), BLUE),
        Series("HO-SFL, P = 1", points([1], [single]), GREEN),
        Series("walk, P = 4", points([1], [still[0]]), RED, ":", "x"),
        Series("walk, P = 1", points([1], [still[1]]), ORANGE, ":", "x"),
        Series("first order, the same weights", points([0, 1, 2, 3], [first[0], *first]), BLACK,
               "--", "s"),
    )  # fmt: skip
    along = (
        Series("channel, P = 4", rates(four, server), BLUE),
        Series("channel, P = 1", rates(single, server), GREEN),
        Series("one scalar, P = 4", rates(whole, server), PINK),
        Series("walk, P = 4", rates(still[0], server), RED, ":", "x"),
        Series("walk, P = 1", rates(still[1], server), ORANGE, ":", "x"),
        Series("first order", rates(first[0], server), BLACK, "--", "s"),
    )
    return (
        Panel(
            "Fashion-MNIST, from random weights", "test accuracy", fashion, (0.7, 0.86),
            mean(named(few, "frozen client, a server step a batch"))[0],
            ("all weights", "subspace:16\none scalar", "subspace:16\nchannel"),
        ),
        Panel(
            "EfficientNet-Lite0, pre-trained", "test accuracy", efficientnet, (0.45, 0.59),
            mean(named(net, "frozen client"))[0],
            ("subspace:16\none scalar", "subspace:16\nchannel", "last layer", "all weights"),
        ),
        Panel(
            "EfficientNet-Lite0, subspace:16", "client rate; held back accuracy, seed 0", along,
            (0.45, 0.59), float(frozen[1]),
            (0.03, 0.1, 0.4, 1.0, 4.0, 16.0),
        ),
    )  # fmt: skip


PLOTS = {"digits": digits, "trained": trained}
"""File -> what it shows."""


def panels(name: str) -> tuple[Panel, ...]:
    """Return what a plot shows, read from the pages."""
    return PLOTS[name]()


def drawn(name: str) -> str:
    """Return a plot as SVG: text as text, the same bytes each time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = panels(name)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "curves", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12.6, 4.6))
        FigureCanvasSVG(figure)
        # Fixed places: a point lies where its value says, whatever a version's fonts measure.
        figure.subplots_adjust(left=0.045, right=0.99, top=0.92, bottom=0.37, wspace=0.16)
        for number, (axes, panel) in enumerate(zip(figure.subplots(1, 3), shown, strict=True)):
            _draw(axes, panel, f"{name}-{number}")
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw(axes: Axes, panel: Panel, name: str) -> None:
    names = [tick for tick in panel.ticks if isinstance(tick, str)]
    values = [tick for tick in panel.ticks if not isinstance(tick, str)]
    for number, series in enumerate(panel.series):
        x, y, spread = zip(*series.points, strict=True)
        # Beside each other where several stand at one name.
        shift = 0.07 * (number - (len(panel.series) - 1) / 2) if names else 0.0
        places = [place + shift for place in x]
        (line,) = axes.plot(
            places, y, "" if names and series.line == "-" else series.line, color=series.colour,
            marker=series.marker, markersize=5, linewidth=1.5, label=series.label,
        )  # fmt: skip
        if names:
            line.set_linestyle("none")
        line.set_gid(f"{name}-{number}")
        bars = [(place, at, sd) for place, at, sd in zip(places, y, spread, strict=True) if sd]
        if bars:
            lows, highs = [at - sd for _, at, sd in bars], [at + sd for _, at, sd in bars]
            at = [place for place, _, _ in bars]
            lines = axes.vlines(at, lows, highs, colors=series.colour, linewidth=1)
            lines.set_gid(f"{name}-{number}-spread")
    if panel.level is not None:
        level = axes.axhline(panel.level, color=BLACK, linewidth=1, linestyle=(0, (1, 3)))
        level.set_label("frozen client")
        level.set_gid(f"{name}-level")
    if names:
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        every = [x for series in panel.series for x, _, _ in series.points]
        axes.set_xlim(min(every) / 1.5, max(every) * 1.5)
    axes.set_ylim(*panel.limits)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel(panel.about)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(
        frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.27),
        borderaxespad=0,
    )  # fmt: skip


def main() -> None:
    """Write every plot."""
    CURVES.mkdir(exist_ok=True)
    for name in PLOTS:
        path = CURVES / f"{name}.svg"
        path.write_text(drawn(name), encoding="utf-8")
        print(path.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    main()
