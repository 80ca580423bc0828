"""The `sfl report` command."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from sfl_flower.cli.places import at_home
from sfl_flower.reporting.page import write_report

__all__ = ["add_report"]


def add_report(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "report",
        allow_abbrev=False,
        help="put runs, or a comparison, on one page for a browser",
        description=(
            "Write one HTML file that needs nothing else: accuracy against rounds, samples, bytes, "
            "client operations and time, what travelled, what clients needed and how they took "
            "part, privacy and attacks. A run that is still going is shown as far as it goes."
        ),
        epilog="Example: sfl report runs/ho_sfl runs/frozen --out both.html",
    )
    parser.add_argument(
        "runs", metavar="DIR", type=at_home, nargs="+",
        help="run directories, or the output folder of sfl compare; results of sfl attack are "
        "found inside them, or named beside them",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE", type=at_home,
        help="the page (default: report.html in the directory, or in this one for several)",
    )  # fmt: skip
    parser.set_defaults(action=_report)


def _report(parsed: argparse.Namespace) -> None:
    page = write_report(*parsed.runs, out=parsed.out)
    text = f"The report is in {page.absolute()}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
