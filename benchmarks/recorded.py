"""Figures of runs that take too long for `make bench`, as they were measured, with their commands.

``python -m benchmarks NAME ... --record`` puts what it prints among them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figure import Figure

__all__ = ["FILE", "record", "run"]

FILE = Path(__file__).parents[1] / "docs" / "results" / "figures.jsonl"
"""A figure a line, with the command that printed it."""
PLACE = "PATH"
"""Stands in a command for what somebody has somewhere."""


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield each figure, with its command in front of its setting."""
    for line in _lines():
        told = json.loads(line)
        # Not finite: whether that meets the target was known when it was measured.
        lost = math.inf if told["met"] is not told["lower_is_better"] else -math.inf
        value = lost if told["value"] is None else told["value"]
        setting = f"recorded, `{told['command']}`: {told['setting']}"
        yield Figure(
            told["name"], value, told["unit"], told["target"], setting, told["lower_is_better"]
        )


def record(figure: Figure, argv: Sequence[str]) -> None:
    """Put a figure into the file, in the place of an older one of its name.

    Parameters
    ----------
    figure : Figure
        What was measured.
    argv : sequence of str
        The words behind ``python -m benchmarks``.
    """
    told = json.loads(figure.to_json())
    # A file of results says where somebody keeps them, and changes nothing.
    command = shlex.join(["python", "-m", "benchmarks", *_without_files(argv)])
    lines = {json.loads(line)["name"]: line for line in _lines()}
    lines[figure.name] = json.dumps({**told, "command": command}, ensure_ascii=False)
    FILE.write_text("".join(f"{line}\n" for line in lines.values()))


def _lines() -> list[str]:
    return FILE.read_text().splitlines() if FILE.exists() else []


def _without_files(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in argv:
        option, joined, value = word.partition("=")
        out = option.startswith("--") and option.endswith("-out")
        if not skip and not out and word not in ("--record", "--json"):
            # What to give remains, where somebody has it does not.
            path = value if joined else word
            kept.append(word.removesuffix(path) + PLACE if _is_place(path) else word)
        skip = out and not joined
    return kept


def _is_place(word: str) -> bool:
    """Tell a path from other words with a stroke in them, such as the name of a model."""
    return word.startswith(("/", "./", "../", "~")) or (os.sep in word and Path(word).exists())
