#!/usr/bin/env python3
"""The structure of the package, read from its imports: rooms, floors and the arrows between them.

usage: python scripts/structure.py [--json]

A room is a folder of modules; the top-level modules stand beside the rooms.  Every place stands on
a floor and may import from lower floors only; rooms of one floor do not know each other.  Imports
anywhere in a module count, inside functions and for types too, and so do references by text
(``"sfl_flower.clients.ho_sfl:forward"``), which are imports that wait.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sfl_flower"

# From the ground up. A module that stands on none of them, or imports from above, is an offence.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("data", "options", "privacy", "split", "training", "zo"),
    ("config", "task", "wire"),
    ("presets", "report", "tasks"),
    ("callbacks", "node", "server"),
    ("clients", "strategies"),
    ("methods",),
    ("run",),
    ("attacks", "comparison", "profiling", "reporting"),
    ("cli",),
    ("__init__",),
)
# The rooms inside a room, from the ground up; "" is the outer room itself.
INNER: dict[str, tuple[tuple[str, ...], ...]] = {
    "split": (("parameters",), ("graph",), ("checks", "transformers"), ("",)),
}
_REFERENCE = re.compile(rf"{PACKAGE}(?:\.\w+)+:\w+")

Arrow = tuple[str, str]
"""A place and one it imports from."""


def module_name(path: str) -> str:
    """Return the dotted name of a source file: ``sfl_flower/zo/keys.py`` is ``zo.keys``."""
    parts = list(Path(path).with_suffix("").parts[1:])
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports(source: str, path: str) -> set[str]:
    """Return every module that a source file imports, anywhere in it, by absolute name."""
    package = list(Path(path).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.add(origin)
            # `from sfl_flower import wire` names a module too.
            found.update(f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _REFERENCE.fullmatch(node.value):
                found.add(node.value.partition(":")[0])
    return found


def place(module: str) -> str:
    """Return where a module of the package stands: its room, or itself at the top level."""
    return module.partition(".")[0] or "__init__"


def inner_place(module: str) -> str:
    """Return the room inside the room, empty for the outer one."""
    room, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return first if first in {name for floor in INNER.get(room, ()) for name in floor} else ""


def floor_of(name: str, floors: tuple[tuple[str, ...], ...] = FLOORS) -> int | None:
    """Return the number of a place's floor, None where it stands on none."""
    return next((n for n, floor in enumerate(floors) if name in floor), None)


def offences(source: str, path: str) -> list[str]:
    """Return what a file imports from its own floor or above, or that it stands on none."""
    own = module_name(path)
    here, found = place(own), []
    level = floor_of(here)
    if level is None:
        return [f"{path} stands on no floor; give '{here}' one in scripts/structure.py"]
    for name in sorted(imports(source, path)):
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            continue
        target = name.removeprefix(PACKAGE).lstrip(".")
        there = place(target)
        if there not in {n for floor in FLOORS for n in floor}:
            if there.isidentifier() and (ROOT / PACKAGE / there).exists():
                found.append(f"{path} imports {name}, which stands on no floor")
            else:  # a name of the package itself, such as __version__
                there = "__init__"
        if there == "__init__" and own != "__init__" and name == PACKAGE:
            continue  # `from sfl_flower import wire` is judged by what it names
        other = floor_of(there)
        if here == there:
            inner = INNER.get(here)
            if inner and here != "__init__":
                a, b = inner_place(own), inner_place(target)
                low, high = floor_of(b, inner), floor_of(a, inner)
                if a != b and low is not None and high is not None and low >= high:
                    found.append(f"{path} imports {name}, inside {here} from above")
        elif other is not None and other >= level:
            found.append(f"{path} imports {name}, from floor {other + 1} on floor {level + 1}")
    return found


def modules(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yield path and source of every module of the package; what `sfl new` copies is none."""
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if root / PACKAGE / "templates" not in path.parents:
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def measure(root: Path = ROOT) -> dict[str, int]:
    """Return the figures of the structure."""
    arrows: set[Arrow] = set()
    rooms: set[str] = set()
    top: set[str] = set()
    largest, up = 0, 0
    for path, source in modules(root):
        name = module_name(path)
        largest = max(largest, len(source.splitlines()))
        folder = Path(path).parent.as_posix().removeprefix(PACKAGE).lstrip("/")
        if folder:
            rooms.add(folder)
        else:
            top.add(name)
        up += len(offences(source, path))
        for target in imports(source, path):
            if target.startswith(PACKAGE + "."):
                there = place(target.removeprefix(PACKAGE + "."))
                if there != place(name) and floor_of(there) is not None:
                    arrows.add((place(name), there))
    return {
        "rooms": len(rooms),
        "floors": len(FLOORS),
        "arrows": len(arrows),
        "arrows_up": up,
        "top_level_modules": len(top),
        "largest_module": largest,
    }


def main() -> None:
    """Print the figures, and what stands against the plan."""
    found = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(found, indent=2))
        return
    for number, floor in reversed(list(enumerate(FLOORS, start=1))):
        print(f"floor {number:2}  {'  '.join(floor)}")
    for name, value in found.items():
        print(f"{name:18} {value}")
    for path, source in modules():
        for offence in offences(source, path):
            print(offence)


if __name__ == "__main__":
    main()
