"""The `sfl options` command: every option with its default, its legal values and its meaning."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl_flower.cli.given import find
from sfl_flower.config import RunConfig, unknown
from sfl_flower.methods import METHODS, find_method
from sfl_flower.tasks import TASKS, task_options

__all__ = ["add_options"]


def add_options(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    options = commands.add_parser("options", help="list the options of runs, methods and tasks")
    options.add_argument(
        "name",
        nargs="?",
        help="a method (MODULE:NAME for your own) or a task (default: options of any run)",
    )
    options.set_defaults(action=_options)


def _options(parsed: argparse.Namespace) -> None:
    name = parsed.name
    if name is None:
        _print_fields("Options of every run", RunConfig)
        hint = f"methods: {', '.join(METHODS)}; tasks: {', '.join(TASKS)}"
        Console().print(f"'sfl options NAME' lists those of one ({hint}).", highlight=False)
    elif name in METHODS or ":" in name:
        method = find_method(find("NAME", name) if ":" in name else name)
        _print_fields(f"Options of method {method.name}", method.settings)
    elif name not in TASKS:
        raise unknown("method or task", name, (*METHODS, *TASKS))
    else:
        rows = [(f"task.{key}", value, "") for key, value in task_options(name).items()]
        _print(f"Options of task {name}", rows)


def _print_fields(title: str, kind: type[Any]) -> None:
    meanings = _meanings(kind)
    _print(title, [(f.name, f.default, meanings.get(f.name, "")) for f in dataclasses.fields(kind)])


def _print(title: str, rows: Sequence[tuple[str, Any, str]]) -> None:
    table = Table("option", "default", "meaning", title=title, title_justify="left")
    for key, default, meaning in rows:
        shown = "" if default == "" else str(default)
        table.add_row(key.replace("_", "-"), escape(shown), escape(meaning))
    Console().print(table)


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Read the meaning of each field from the NumPy docstrings of the class and its bases.

    What a class says of a field stands in place of what its bases say.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    docs = [inspect.cleandoc(part.__doc__ or "") for part in kind.__mro__]
    for line in "\n\n".join(reversed(docs)).splitlines():
        head = re.fullmatch(r"(\w+(?:, \w+)*) : .*", line)
        if head:
            names = head.group(1).split(", ")
            found.update(dict.fromkeys(names, ""))
        elif line.startswith("    ") and names:
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found
