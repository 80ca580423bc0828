"""`sfl warm`: a SuperNode whose client processes start warm."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

__all__ = ["add_warm"]


def add_warm(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    warm = commands.add_parser(
        "warm",
        help="run a SuperNode whose client processes start with torch in memory",
        epilog="Example: sfl warm --preload torchvision flower-supernode --insecure "
        "--superlink 127.0.0.1:8000",
    )
    warm.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this too before the first message, such as torchvision; may be repeated",
    )
    warm.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        help="flower-supernode, or flower-superexec, with its options",
    )
    warm.set_defaults(action=_warm)


def _warm(parsed: argparse.Namespace) -> None:
    # Every client process is a copy of the one that serves: one without this command line.
    options = [part for module in parsed.preload for part in ("--preload", module)]
    # Its first folder for modules is not the current one (-P), as with Flower's own program.
    called = [sys.executable, "-P", "-m", "sfl_flower.run.warm", *options, *parsed.command]
    os.execv(sys.executable, called)
