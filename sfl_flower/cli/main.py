"""The `sfl` command, put together of its subcommands, one file each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from sfl_flower.cli.attack import add_attack
from sfl_flower.cli.compare import add_compare
from sfl_flower.cli.demo import add_demo
from sfl_flower.cli.export import add_export
from sfl_flower.cli.leftovers import say_leftovers
from sfl_flower.cli.new import add_new
from sfl_flower.cli.options import add_options
from sfl_flower.cli.presets import add_presets
from sfl_flower.cli.profile import add_profile
from sfl_flower.cli.report import add_report
from sfl_flower.cli.run import add_run
from sfl_flower.cli.tune import add_tune
from sfl_flower.cli.warm import add_warm
from sfl_flower.cli.watch import add_watch
from sfl_flower.errors import ConfigError, CutError, SflError

__all__ = ["main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        Exit status: 0 when the run is complete, 1 when it failed, 2 when it was asked for wrongly.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed, left = parser().parse_known_args(given)
    console = Console(stderr=True)
    try:
        if left:
            raise say_leftovers(given, left)
        parsed.action(parsed)
    except SflError as error:
        # Texts in brackets are not rich's markup.
        console.print(f"[red]error:[/red] {escape(error.shell)}", highlight=False, soft_wrap=True)
        return 2 if isinstance(error, ConfigError | CutError) else 1
    except KeyboardInterrupt:
        console.print("stopped; --resume, or the same comparison, goes on from the last checkpoint")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of `sfl` and its commands."""
    found = argparse.ArgumentParser(
        prog="sfl",
        description="Split federated learning with forward-only clients, on Flower.",
        allow_abbrev=False,
    )
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_new, add_run, add_watch, add_compare, add_tune, add_report, add_export, add_profile,
        add_attack, add_options, add_presets, add_demo, add_warm,
    ):  # fmt: skip
        add(commands)
    return found


if __name__ == "__main__":
    sys.exit(main())
