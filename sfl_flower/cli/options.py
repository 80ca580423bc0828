"""The `sfl options` command: every option with its default, its legal values and its meaning."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl_flower.cli.given import find
from sfl_flower.config import RunConfig
from sfl_flower.methods import METHODS, find_method
from sfl_flower.options import legal_values, type_in_words, unknown
from sfl_flower.server.aggregate import SAYS as AGGREGATIONS
from sfl_flower.tasks import TASKS, task_options
from sfl_flower.wire.encodings import SAYS

__all__ = ["add_options"]

# Names that a run's configuration takes and does not know itself.
_NAMES: Mapping[type[Any], Mapping[str, str]] = {
    RunConfig: {
        "task": f"{', '.join(TASKS)}, or MODULE:ATTRIBUTE",
        "method": f"{', '.join(METHODS)}, or MODULE:NAME",
        "aggregator": AGGREGATIONS,
        "smashed": SAYS,
        "gradients": SAYS,
    }
}


def add_options(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    options = commands.add_parser(
        "options",
        help="list the options of runs, methods and tasks",
        epilog="Example: sfl options ho_sfl",
    )
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
        _print_task(name)


def _print_fields(title: str, kind: type[Any]) -> None:
    meanings, legal = _meanings(kind), {**legal_values(kind), **_NAMES.get(kind, {})}
    rows = [
        (field.name, field.default, legal[field.name], meanings.get(field.name, ""))
        for field in dataclasses.fields(kind)
    ]
    _print(title, rows)


def _print_task(name: str) -> None:
    meanings, kinds = _task_meanings(name), get_type_hints(TASKS[name])
    rows = [
        (f"task.{key}", value, type_in_words(kinds[key]), meanings.get(key, ""))
        for key, value in task_options(name).items()
    ]
    _print(f"Options of task {name}", rows)


def _print(title: str, rows: Sequence[tuple[str, Any, str, str]]) -> None:
    console = Console()
    console.print(title, markup=False, highlight=False)
    table = Table("option", "default", "legal", "meaning", box=SIMPLE_HEAD, pad_edge=False)
    for key, default, legal, meaning in rows:
        shown = "" if default == "" else str(default)
        table.add_row(*map(escape, (key.replace("_", "-"), shown, legal, meaning)))
    console.print(table)


def _task_meanings(name: str) -> dict[str, str]:
    """Return the meaning of each option of a task; what it leaves out, another task says."""
    found = _meanings(TASKS[name])
    for other in TASKS.values():
        found = {**_meanings(other), **found}
    return found


def _meanings(kind: Any) -> dict[str, str]:
    """Read the meaning of each option from the NumPy docstrings of a function, or class and bases.

    What a class says of a field stands in place of what its bases say.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    parts = getattr(kind, "__mro__", (kind,))
    docs = [inspect.cleandoc(part.__doc__ or "") for part in parts]
    for line in "\n\n".join(reversed(docs)).splitlines():
        head = re.fullmatch(r"(\w+(?:, \w+)*) : .*", line)
        if head:
            names = head.group(1).split(", ")
            found.update(dict.fromkeys(names, ""))
        elif line.startswith("    ") and names:
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
        elif line:
            names = []
    return found
