"""The `sfl watch` command: a run that goes on elsewhere, by its directory."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from sfl_flower.cli.places import at_home
from sfl_flower.report import RunProgress, print_tables
from sfl_flower.report.follow import Following

__all__ = ["add_watch", "watch"]

POLL_S = 0.5
"""Seconds between two looks into the directory."""


def add_watch(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "watch",
        allow_abbrev=False,
        help="follow a run that goes on elsewhere, by its directory",
        description="Follow a run that goes on in another process, or on another machine, by what "
        "it writes into its directory; ends when the run does, and shows what it came to. Nothing "
        "is written. The exit status is 1 where the run was broken off.",
        epilog="Example: sfl watch runs/digits-ho_sfl-seed0",
    )
    parser.add_argument("directory", metavar="DIR", type=at_home, help="the run directory")
    parser.set_defaults(action=_watch)


def _watch(parsed: argparse.Namespace) -> None:
    try:
        watch(parsed.directory)
    except KeyboardInterrupt:
        Console(stderr=True).print("no longer watched; the run goes on", highlight=False)
        raise SystemExit(130) from None


def watch(path: Path, console: Console | None = None) -> None:
    """Show a run until it ends.

    Parameters
    ----------
    path : Path
        Its directory.
    console : Console, optional
        Where; standard output when left out.

    Raises
    ------
    SflError
        If it is no run directory, or the run was broken off.
    """
    following = Following(path)
    with RunProgress(console) as progress:
        show = progress.start(following.label, following.rounds)
        going, last = True, None
        while going:
            # Before the records, so that none of a run that ends now is missed.
            going = following.goes_on()
            for last in following.news():
                show(last)
            if going:
                time.sleep(POLL_S)
    following.check_whole()
    print_tables([following.directory.load_summary()[0]], console=console)
    if last is not None and last.round < following.rounds:
        for note in last.notes:  # why it ended there
            (console or Console()).print(note, markup=False, highlight=False, soft_wrap=True)
