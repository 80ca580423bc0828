"""What the Flower Hub asks of an app, and what keeps the one in a folder from being published."""

from __future__ import annotations

import io
import re
import tomllib
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

__all__ = ["hub_offences"]

KINDS = {".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl"}
"""Kinds of files that the Hub takes; of others it leaves out what is not in `NAMES`."""
NAMES = {"LICENSE", ".gitignore"}
RULES = ("_validate_app_name", "_validate_description", "_collect_file_paths", "_validate_files")
"""What `flwr app publish` of 1.42 asks, in this order, before it uploads."""
LARGEST_FILE, LARGEST_APP = 2**20, 10 * 2**20


def hub_offences(app: Path) -> list[str]:
    """Return what keeps the app in a folder from being published, by the rules and by Flower's own.

    The rules are those of `flwr app publish` of 1.42, and of version 1 of its bundles; where the
    installed Flower has that command, it is asked as well, up to the upload.
    """
    project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    found = [*_of_names(app, project), *_of_bundle(project), *_of_files(app)]
    return found or _of_flower(app)


def _of_names(app: Path, project: dict[str, Any]) -> list[str]:
    table, flower = project["project"], project["tool"]["flwr"]["app"]
    found = [
        f"the {what} is {name!r}"
        for what, name in (("folder", app.name), ("project", table["name"]))
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,31}", name)
    ]
    if not 0 < len(table.get("description", "").strip()) <= 200:
        found.append("the description has no 1 to 200 characters")
    found += [f"no {key} in [tool.flwr.app]" for key in ("publisher", "config") if not flower[key]]
    for name in ("serverapp", "clientapp"):
        module = flower["components"][name].partition(":")[0]
        if not (app / (module.replace(".", "/") + ".py")).is_file():
            found.append(f"there is no module {module} for the {name}")
    return found


def _of_bundle(project: dict[str, Any]) -> list[str]:
    table, flower = project["project"], project["tool"]["flwr"]["app"]
    found = []
    if table.get("license") != {"file": "LICENSE"}:
        found.append('license is not { file = "LICENSE" }')
    if flower.get("fab-format-version") != 1:
        found.append("fab-format-version is not 1")
    needs = [Requirement(entry) for entry in table["dependencies"]]
    ranges = [need.specifier for need in needs if need.name == "flwr"]
    if len(ranges) != 1 or ">=" not in {part.operator for part in ranges[0]}:
        found.append("dependencies name no flwr from a version on")
    elif flower.get("flwr-version-target") not in ranges[0]:
        found.append("flwr-version-target is none of the versions that dependencies allow")
    return found


def _of_files(app: Path) -> list[str]:
    files = [path for path in app.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = ("LICENSE", "README.md")
    found = [f"{name} is missing" for name in wanted if not (app / name).is_file()]
    for path in files:
        place = path.relative_to(app).as_posix()
        if path.suffix not in KINDS and place not in NAMES:
            found.append(f"{place} is of a kind that is left out")
        if path.stat().st_size > LARGEST_FILE:
            found.append(f"{place} is larger than 1 MB")
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            found.append(f"{place} is not UTF-8")
    if sum(path.stat().st_size for path in files) > LARGEST_APP:
        found.append("the app is larger than 10 MB")
    return found


def _of_flower(app: Path) -> list[str]:
    try:
        # Not public: where it is, it is asked. The package gives its module's name to a function.
        rules = vars(import_module("flwr.cli.app_cmd.publish"))
        named, described, collect, check = (rules[name] for name in RULES)
        build, load = (
            vars(import_module(f"flwr.cli.{module}"))[name]
            for module, name in (
                ("build", "build_fab_from_disk"), ("config_utils", "load_and_validate"),
            )
        )  # fmt: skip
    except (ImportError, KeyError):  # an older one asks less
        return []
    with redirect_stdout(io.StringIO()) as said:
        try:
            config, warnings = load(app / "pyproject.toml", check_module=False)
            named(app.name, "folder")
            described(config["project"]["description"])
            check(collect(app))
            build(app)
        except Exception as error:
            return [str(getattr(error, "message", error))]
    skipped = [line for line in said.getvalue().splitlines() if "Skip:" in line]
    return [*warnings, *(line for line in skipped if "__pycache__" not in line)]
