"""The sections of terms: what a method is held against, and the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sfl_flower.report.table import NONE, human_bytes
from sfl_flower.reporting.figures import number
from sfl_flower.reporting.gather import CONTROL, Gathered, Group
from sfl_flower.reporting.parts import Cell, Section, Sheet

__all__ = ["configuration_section", "held_against"]


def held_against(found: Gathered) -> Section | None:
    """Return each row beside the control, its own walk and first order at equal memory."""
    if not found.comparison and found.control is None:
        return None
    control, metric = found.control, found.metric
    has_walk = any(group.row.get("walk") is not None for group in found.groups)
    has_still = any(group.row.get("at_rate_0") is not None for group in found.groups)
    header = ["method", metric or "result", "over the control"]
    header += (["its walk"] if has_walk else []) + (["at rate 0"] if has_still else [])
    header += ["margin", "gap closed", "what it is"] if found.comparison else ["what it is"]
    rows: list[list[Cell]] = []
    for group in found.groups:
        mean = group.score(metric)[0] if metric else math.nan
        line: list[Cell] = [group.label, number(mean, metric)]
        line.append(NONE if control is None or math.isnan(mean) else f"{mean - control:+.4f}")
        line += [number(_float(group.row, "walk"), metric)] if has_walk else []
        line += [number(_float(group.row, "at_rate_0"), metric)] if has_still else []
        if found.comparison:
            margin, gap = _float(group.row, "margin"), _float(group.row, "gap_closed")
            line.append(NONE if margin is None else f"{margin:+.4f}")
            line.append(NONE if gap is None else f"{gap:.2f}")
        rows.append([*line, _kind(group, found)])
    text = [
        f"The control, {CONTROL}, is the same model whose clients are never trained: what a method "
        "has above it does not come of the server half alone."
        if any(group.method == CONTROL for group in found.groups)
        else f"There is no {CONTROL} control here, so what clients earned is not known."
    ]
    if has_walk:
        text.append(
            "A walk is the same method with steps as long that tell nothing. The margin is what is "
            "left over the higher of control and walk, and all that a method may claim."
        )
    if matched := [group for group in found.groups if _matched(group, found)]:
        names = ", ".join(
            f"{group.label} ({human_bytes(group.client_peak)} on a client)" for group in matched
        )
        text.append(
            "First order at no more memory than forwards take, in micro-batches: " + names + "."
        )
    said = found.comparison
    remarks = [*said.get("notes", ())]
    remarks += [
        f"{name} is not in the table: {why}" for name, why in said.get("refused", {}).items()
    ]
    sheet = Sheet("What each is held against", header, rows)
    return Section("control", "Held against the control", text, tables=[sheet], remarks=remarks)


def _float(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def _matched(group: Group, found: Gathered) -> bool:
    """Tell whether a row is another one of first order, in micro-batches."""
    own = group.runs[0].config.get("micro_batch", "all")
    return own != "all" and group.term("client") == "first order" and any(
        other.method == group.method and other.runs[0].config.get("micro_batch") == "all"
        for other in found.groups
    )  # fmt: skip


def _kind(group: Group, found: Gathered) -> str:
    if group.method == CONTROL:
        return "control"
    if _matched(group, found):
        return "first order, equal memory"
    return {"zeroth order": "forward-only clients"}.get(
        str(group.term("client")), str(group.term("client") or NONE)
    )


def configuration_section(found: Gathered) -> Section:
    """Return what was run: what all have, and in what they differ."""
    configs = [group.runs[0].config for group in found.groups]
    keys = sorted({key for config in configs for key in config} - {"out", "resume"})
    keys = [key for key in keys if key != "seed"]  # it stands beside each run
    shown = {key: [_text(config.get(key)) for config in configs] for key in keys}
    everyone = {key for key in keys if all(key in config for config in configs)}
    differ = [[k, *line] for k, line in shown.items() if len({*line}) > 1 and k in everyone]
    own = [[k, *line] for k, line in shown.items() if k not in everyone]
    same = [[k, line[0]] for k, line in shown.items() if len({*line}) == 1 and k in everyone]
    tables = []
    header = ["option", *(group.label for group in found.groups)]
    if differ:
        tables.append(Sheet("In what they differ", header, differ, True))
    runs = [
        [group.label, _text(run.seed), run.path.as_posix(), run.state]
        for group in found.groups
        for run in group.runs
    ]
    tables.append(Sheet("Runs", ["method", "seed", "directory", "state"], runs, True))
    versions = {key: None for run in found.runs for key in run.versions}
    lines = [
        [key, ", ".join(dict.fromkeys(_text(run.versions.get(key)) for run in found.runs))]
        for key in versions
    ]
    facts = [
        [key.replace("_", " "), _text(value)]
        for key, value in found.runs[0].facts.items()
        if key in ("cut", "trained", "classes", "training_samples", "test_samples")
    ]
    one = len(found.groups) == 1
    common = "Options" if one else "What all have"
    more = [
        Sheet(common, ["option", "value"], same, True),
        *([Sheet("What only some methods have", header, own, True)] if own else []),
        *([Sheet("Task", ["fact", "value"], facts, True)] if facts else []),
        *([Sheet("Versions", ["package", "version"], lines, True)] if lines else []),
    ]
    return Section("configuration", "Configuration", (), tables=tables, more=more)


def _text(value: Any) -> str:
    if value is None or value == "":
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)
