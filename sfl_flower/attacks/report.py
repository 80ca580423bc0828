"""A report of attacks for a person: tables, pictures and numbers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from sfl_flower.attacks.findings import AttackReport, Finding
from sfl_flower.attacks.pictures import draw
from sfl_flower.errors import ConfigError
from sfl_flower.report.files import atomic_write, write_json
from sfl_flower.report.table import NONE, Part, markdown_part, narrow, print_all, rich_part

__all__ = ["attack_numbers", "made_folder", "markdown_attack", "print_attack", "write_attack"]

WIDTH = 100
"""Columns of what is printed; wider tables go on below."""


def print_attack(report: AttackReport, console: Console | None = None) -> None:
    """Print tables and notes; on standard output by default."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    parts = [piece for part in _parts(report) for piece in narrow(part, WIDTH)]
    print_all([rich_part(part) for part in parts], console)
    for sentence in _remarks(report):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def markdown_attack(report: AttackReport, pictures: dict[str, str] | None = None) -> str:
    """Return tables, pictures and notes as markdown.

    Parameters
    ----------
    report : AttackReport
        What was found.
    pictures : dict of str to str, optional
        File names by cut.
    """
    blocks = [markdown_part(part) for part in _parts(report)]
    blocks += [f"![{at}]({name})\n" for at, name in (pictures or {}).items()]
    return "\n".join([*blocks, "\n".join(f"- {said}" for said in _remarks(report)), ""])


def write_attack(report: AttackReport, out: Path | str) -> None:
    """Write ``attack.json``, ``attack.md`` and a picture a cut into a directory.

    Raises
    ------
    ConfigError
        If the directory cannot be made.
    """
    folder = made_folder(out)
    pictures = {}
    for cut in report.cuts:
        name = re.sub(r"[^\w.-]+", "_", cut.at) + ".png"
        if draw(report, cut, folder / name) is not None:
            pictures[cut.at] = name
    text = markdown_attack(report, pictures)
    atomic_write(folder / "attack.md", lambda tmp: tmp.write_text(text, encoding="utf-8"))
    write_json(folder / "attack.json", {**attack_numbers(report), "pictures": pictures})


def made_folder(out: Path | str) -> Path:
    """Make a directory for a report, and return it.

    Raises
    ------
    ConfigError
        If it cannot be made or written to.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"Cannot write to the directory {folder}: {error.strerror}; choose another"
        raise ConfigError(f"{problem}.", shell=f"{problem} with --out.") from error
    return folder


def attack_numbers(report: AttackReport) -> dict[str, Any]:
    """Return every number of the report as plain values."""
    return {
        "task": report.task,
        "weights": report.weights,
        "settings": asdict(report.settings),
        "metric": report.metric,
        "cuts": [
            {
                "cut": cut.at,
                "smashed_shape": list(cut.shape),
                "defences": {
                    text: {"as_applied": said, report.metric: cut.accuracy[text]}
                    for text, said in cut.defences.items()
                },
                "findings": [_finding(found) for found in cut.findings],
                "notes": list(cut.notes),
            }
            for cut in report.cuts
        ],
        "notes": list(report.notes),
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "attack": found.attack,
        "defence": found.defence,
        "kind": found.kind,
        "reached": dict(found.reached),
        "guess": dict(found.guess),
        "class_guess": dict(found.class_guess),
        "share_of_guess": found.of_guess,
        "failed": found.failed,
        "facts": dict(found.facts),
    }


def _remarks(report: AttackReport) -> Iterator[str]:
    for cut in report.cuts:
        failed = [f"{found.defence}, {found.attack}" for found in cut.findings if found.failed]
        if failed:
            said = f"{cut.at}: worse than a guess: this attack failed here:"
            yield f"{said} {'; '.join(failed)}."
        yield from (f"{cut.at}: {said}" for said in cut.notes)
    yield from report.notes


def _parts(report: AttackReport) -> Iterator[Part]:
    inputs: list[list[str]] = []
    labels: list[list[str]] = []
    led: list[list[str]] = []
    for cut in report.cuts:
        for found in cut.findings:
            name = f"{cut.at}, {found.defence}, {found.attack}"
            reached, guess = found.reached, found.guess
            if found.kind == "inputs":
                share = found.of_guess
                of_class = found.class_guess
                values = [_number(part.get("mse")) for part in (reached, guess, of_class)]
                values += [NONE if share is None else f"{share:.3f}"]
                values += [_number(part.get("ssim"), 3) for part in (reached, guess, of_class)]
                inputs.append([name, *values])
                if "apart" in found.facts:
                    led.append([name, _number(found.facts["apart"], 3)])
                continue
            values = [_number(part.get(key), 3) for key in ("accuracy", "auc")
                      for part in (reached, guess)]  # fmt: skip
            labels.append([name, *values])
    what = f"{report.task}, {report.weights}"
    first = "cut, defence, attack"
    if inputs:
        header = [first, "MSE", "mean", "class", "share", "SSIM", "mean", "class"]
        said = "in 0 .. 1; guesses are the mean and the class's mean, a share is of the better one"
        yield f"Inputs from smashed data: {what}; {said}", header, inputs
    if led:
        said = "standard deviations between means of smashed data and of the pilot's"
        yield f"How far clients are from the pilot: {said}", [first, "apart"], led
    if labels:
        header = [first, "accuracy", "guess", "AUC", "guess"]
        yield f"Labels that were not sent: {what}", header, labels
    rows = [
        [f"{cut.at}, {text}", cut.defences[text], _number(value),
         f"{value - next(iter(cut.accuracy.values())):+.4f}"]
        for cut in report.cuts
        for text, value in cut.accuracy.items()
    ]  # fmt: skip
    title = f"What defences are, and cost in test {report.metric} at the time of the attack"
    yield title, ["cut, defence", "as applied", report.metric, "change"], rows


def _number(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
