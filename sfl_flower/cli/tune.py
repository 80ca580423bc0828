"""The `sfl tune` command."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from sfl_flower.cli.given import TASK_HELP, find, given_task, read_pairs
from sfl_flower.cli.places import at_home
from sfl_flower.comparison.tuning import Among, Between, Trials, Tried, tune
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.report.table import print_all, rich_part
from sfl_flower.run.simulation import BACKENDS

__all__ = ["add_tune"]

SHOWN = 10
"""Trials of the table."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def add_tune(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "tune",
        help="find rates of a method by trial, on samples that are held back",
        description=(
            "Find settings of a method by short runs that are judged by training samples which no "
            "client is given. The test set is not looked at."
        ),
        epilog="Example: sfl tune --task digits --method ho_sfl --rounds 60 --trials 20 "
        "--over client-lr=0.02..2 --over probes=4,16",
        allow_abbrev=False,
    )
    parser.add_argument("--task", required=True, help=TASK_HELP)
    parser.add_argument("--method", default="ho_sfl", help=f"one of: {', '.join(METHODS)}")
    parser.add_argument("--trials", type=int, default=20, help="runs in all (default: 20)")
    parser.add_argument("--rounds", type=int, default=100, help="of each run (default: 100)")
    parser.add_argument("--clients", type=int, help="virtual clients")
    parser.add_argument("--seed", type=int, default=0, help="of runs and of what is tried")
    parser.add_argument(
        "--over", metavar="KEY=LOW..HIGH|A,B,C", action="append", default=[],
        help="what to try, as often as needed (default: client-lr and server-lr, a tenth to ten "
        "times their values)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="look for one rate alone: 8 runs of 6 rounds, without Optuna",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
        help="an option that stays; task options begin with 'task.'",
    )  # fmt: skip
    parser.add_argument(
        "--metric", default="", help="of the task, or loss (default: its first metric)"
    )
    parser.add_argument(
        "--smallest",
        action="store_true",
        help="whether less of the metric is better (of loss it is)",
    )
    parser.add_argument("--out", type=at_home, help="keeps the trials; the same call goes on")
    parser.add_argument("--backend", choices=BACKENDS, default="inline", help="of the runs")
    parser.set_defaults(action=_tune)


def _tune(parsed: argparse.Namespace) -> None:
    options: dict[str, Any] = {"rounds": parsed.rounds, "seed": parsed.seed, "task": parsed.task}
    if parsed.clients is not None:
        options["clients"] = parsed.clients
    options |= read_pairs(parsed.settings)
    method = find("--method", parsed.method) if ":" in parsed.method else parsed.method
    _, _, _, task_options = read_options({**options, "method": method})
    task = given_task(str(options.pop("task")), task_options)
    kept = {key: value for key, value in options.items() if not key.startswith("task.")}
    console = Console()

    def watch(tried: Tried) -> None:
        said = tried.why or f"{tried.value:.4f}"
        console.print(f"{_text(tried.options)}: {said}", markup=False, highlight=False)

    found = tune(
        task, method, over=_spaces(parsed.over), trials=parsed.trials, quick=parsed.quick,
        backend=parsed.backend, metric=parsed.metric, smallest=parsed.smallest, out=parsed.out,
        watch=watch, **kept,
    )  # fmt: skip
    print_all([rich_part(_table(found))], console)
    words = ["sfl", "run", "--task", parsed.task, "--method", parsed.method]
    words += ["--rounds", str(parsed.rounds), "--seed", str(parsed.seed)]
    words += [] if parsed.clients is None else ["--clients", str(parsed.clients)]
    for name, value in found.best.options.items():
        words += ["--set", f"{name.replace('_', '-')}={value}"]
    for pair in parsed.settings:
        words += ["--set", pair]
    line = f"Train with it: {shlex.join(words)}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if edge := _edge(found, _spaces(parsed.over) or {}):
        console.print(edge, markup=False, highlight=False, soft_wrap=True)


def _table(found: Trials) -> tuple[str, list[str], list[list[str]]]:
    best = found.best
    names = list(best.options)
    rows = [
        [*(f"{tried.options.get(name, '')}" for name in names), f"{tried.value:.4f}"]
        for tried in found.ranked()[:SHOWN]
    ]
    title = f"{found.method}, {len(found.tried)} trials of {found.rounds} rounds, the best first"
    return title, [*(name.replace("_", "-") for name in names), found.metric], rows


def _edge(found: Trials, spaces: Mapping[str, Between | Among]) -> str:
    """Say where the best lies at an end of what was tried."""
    at = [
        name.replace("_", "-")
        for name, space in spaces.items()
        if isinstance(space, Between)
        and name in found.best.options
        and not space.low * 1.05 < found.best.options[name] < space.high * 0.95
    ]
    return f"The best lies at the end of the range of {', '.join(at)}: widen it." if at else ""


def _text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')}={value}" for name, value in options.items())


def _spaces(given: list[str]) -> dict[str, Between | Among] | None:
    """Return what ``--over`` says.

    Raises
    ------
    ConfigError
        If it says nothing that can be tried.
    """
    found: dict[str, Between | Among] = {}
    for text in given:
        key, equals, value = text.partition("=")
        name = key.replace("-", "_")
        ends = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", value)
        if not equals or not key or not (ends or "," in value):
            raise ConfigError(
                f"--over got '{text}'; it takes KEY=LOW..HIGH, such as client-lr=0.01..1, or "
                "KEY=A,B,C, such as probes=1,4,16."
            )
        if ends:
            whole = all(re.fullmatch(r"[-+]?\d+", end) for end in ends.groups())
            found[name] = Between(float(ends[1]), float(ends[2]), whole)
        else:
            found[name] = Among(tuple(_value(part) for part in value.split(",")))
    return found or None


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
