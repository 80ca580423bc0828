"""The sections of privacy: what was spent, round by round, and what attacks reached."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfl_flower.errors import DataError
from sfl_flower.report.files import read_json
from sfl_flower.report.plots import mean_curve
from sfl_flower.report.table import NONE
from sfl_flower.reporting.charts import Axis, chart, swatches
from sfl_flower.reporting.gather import Gathered
from sfl_flower.reporting.parts import Figure, Picture, Section, Sheet

__all__ = ["attacks_section", "privacy_section"]

_LARGEST = 4 * 2**20
"""Bytes of a picture that becomes part of the page, at most."""


def privacy_section(found: Gathered) -> Section | None:
    """Return ε round by round, and that of labels; None where no run hides anything."""
    curves, rows, remarks = {}, [], []
    for group in found.groups:
        points = []
        for run in group.runs:
            spent = [
                (float(record.round), value)
                for record in run.history
                if (value := record.extra.get("epsilon")) is not None and math.isfinite(value)
            ]
            if spent:
                points.append(([0.0, *(n for n, _ in spent)], [0.0, *(e for _, e in spent)]))
                settings = [run.config.get(name) for name in ("dp_clip", "dp_delta", "dp_noise_by")]
                shown = [NONE if value is None else str(value) for value in settings]
                rows.append([group.label, str(run.seed), f"{spent[-1][1]:.4g}", *shown])
            if told := run.terms.get("privacy"):
                remarks.append(f"{group.label}, seed {run.seed}: {told}")
            if labels := run.config.get("label_epsilon"):
                remarks.append(
                    f"{group.label}, seed {run.seed}: labels were replaced at random before "
                    f"anything was computed of them, label_epsilon = {labels} for each."
                )
        curves[group.label] = mean_curve(points)
    if not rows:
        said = "Labels are hidden; what else is sent is as it was measured."
        return Section("privacy", "Privacy", [said], remarks=remarks) if remarks else None
    title = "Epsilon, spent up to each round"
    svg = chart("epsilon", title, curves, Axis("round"), "epsilon")
    header = ["method", "seed", "epsilon", "clip", "delta", "noise by"]
    said = (
        "Epsilon bounds what the noised scalars tell of one sample, the one that was used most; "
        "less is more private. It says nothing of what is sent without noise."
    )
    return Section(
        "privacy", "Privacy", [said], swatches(list(curves)), [Figure(svg, title)],
        [Sheet("Epsilon at the end", header, rows)], remarks=remarks,
    )  # fmt: skip


def attacks_section(found: Gathered) -> Section | None:
    """Return what attacks reached; None where none was made.

    Raises
    ------
    DataError
        If a file of results is damaged.
    """
    tables, pictures, remarks = [], [], []
    for path in found.attacks:
        report = read_json(path)
        try:
            tables += _findings(report)
            remarks += [note for cut in report["cuts"] for note in cut["notes"]]
            remarks += [str(note) for note in report["notes"]]
            named = dict(report.get("pictures", {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is no result of sfl attack; make it anew, or take it out of the directory."
            ) from error
        for cut, name in named.items():
            text = f"Inputs, and what attacks made of smashed data at the cut {cut}"
            if (picture := _picture(path.parent / Path(str(name)).name, text)) is not None:
                pictures.append(picture)
    if not tables:
        return None
    said = (
        "What a server could work out of smashed data, beside a guess that needs none. An attack "
        "that fails shows what this attacker cannot do, not that nobody can."
    )
    remarks = list(dict.fromkeys(remarks))
    return Section("attacks", "Attacks", [said], tables=tables, pictures=pictures, remarks=remarks)


def _findings(report: Mapping[str, Any]) -> list[Sheet]:
    inputs, labels = [], []
    for cut in report["cuts"]:
        for one in cut["findings"]:
            name = f"{cut['cut']}, {one['defence']}, {one['attack']}"
            reached, guess = one["reached"], one["guess"]
            if one["kind"] == "inputs":
                values = [part.get(key) for key in ("mse", "ssim")
                          for part in (reached, guess, one["class_guess"])]  # fmt: skip
                share = one.get("share_of_guess")
                inputs.append([name, *map(_number, [*values, share])])
            else:
                values = [part.get(key) for key in ("accuracy", "auc") for part in (reached, guess)]
                labels.append([name, *map(_number, values)])
    what = f"{report['task']}, {report['weights']}"
    found = []
    if inputs:
        header = ["cut, defence, attack", "error (MSE)", "of a guess", "of a guess by class",
                  "likeness (SSIM)", "of a guess", "of a guess by class",
                  "share of guess's error"]  # fmt: skip
        found.append(Sheet(f"Inputs from smashed data: {what}", header, inputs))
    if labels:
        header = ["cut, defence, attack", "accuracy", "of a guess", "AUC", "of a guess"]
        found.append(Sheet(f"Labels that were not sent: {what}", header, labels))
    return found


def _number(value: Any) -> str:
    return NONE if value is None else f"{float(value):.3g}"


def _picture(path: Path, text: str) -> Picture | None:
    with suppress(OSError):
        data = path.read_bytes()
        if len(data) <= _LARGEST and data.startswith(b"\x89PNG"):
            return Picture("data:image/png;base64," + base64.b64encode(data).decode(), text)
    return None
