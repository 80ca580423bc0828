"""Originals above their reconstructions, one PNG a cut."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sfl_flower.attacks.findings import AttackReport, CutReport
from sfl_flower.report.files import atomic_write

__all__ = ["COLUMNS", "draw"]

COLUMNS = 12
"""Victims that are shown."""


def draw(report: AttackReport, cut: CutReport, path: Path) -> Path | None:
    """Write a grid of pictures: originals, guesses, and a row for each attack and defence.

    Parameters
    ----------
    report : AttackReport
        With the originals.
    cut : CutReport
        With the reconstructions.
    path : Path
        The PNG.

    Returns
    -------
    Path or None
        The file; None where inputs are no pictures of one or three channels, or none were made.
    """
    truth = report.truth
    if truth.dim() != 4 or truth.shape[1] not in (1, 3):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[tuple[str, Tensor]] = [("originals", truth)]
    one = next((f for f in cut.findings if f.kind == "inputs"), None)
    if one is None:
        return None
    mean = report.guess.expand_as(truth)
    rows.append((_titled("guess: the mean", one.guess["mse"]), mean))
    name = "guess: the class's mean"
    rows.append((_titled(name, one.class_guess["mse"]), report.class_guess))
    for found in cut.findings:
        if found.shown is not None:
            name = f"{found.attack}, {found.defence}"
            rows.append((_titled(name, found.reached["mse"]), found.shown))
    columns = min(COLUMNS, len(truth))
    figure = Figure(figsize=(2.6 + 0.7 * columns, 0.4 + 0.75 * len(rows)), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    left = 2.6 / (2.6 + 0.7 * columns)
    figure.subplots_adjust(left, 0.01, 0.99, 1 - 0.35 / (0.4 + 0.75 * len(rows)), 0.06, 0.08)
    for line, (title, pictures) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=False):
            shown = picture.permute(1, 2, 0).numpy()
            axes.imshow(shown if shown.shape[2] == 3 else shown[..., 0], "gray", vmin=0, vmax=1)
            axes.axis("off")
        line[0].text(
            -0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=8
        )
    figure.suptitle(f"{report.task} cut at {cut.at}, {report.weights}", fontsize=9)
    atomic_write(path, lambda tmp: figure.savefig(tmp, format="png"))
    return path


def _titled(name: str, mse: float) -> str:
    return f"{name}\nMSE {mse:.4f}"
