"""The `sfl presets` command."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl_flower.presets import PRESETS, load_preset

__all__ = ["add_presets"]


def add_presets(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    presets = commands.add_parser(
        "presets",
        help="list the published experiments and their values",
        epilog="Example: sfl presets heron_resnet18_cifar10",
    )
    presets.add_argument("name", nargs="?", help="one of them (default: all)")
    presets.set_defaults(action=_presets)


def _presets(parsed: argparse.Namespace) -> None:
    for name in [parsed.name] if parsed.name else PRESETS:
        preset = load_preset(name)
        title = f"{name}\n{preset.title}\n{preset.source}"
        table = Table("option", "value", "given by", title=title, title_justify="left")
        for values, origin in ((preset.paper, "paper"), (preset.ours, "ours")):
            for key, value in values.items():
                table.add_row(key.replace("_", "-"), escape(str(value)), origin)
        Console().print(table)
