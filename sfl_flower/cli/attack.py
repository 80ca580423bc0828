"""The `sfl attack` command."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from functools import partial
from typing import Any

from rich.console import Console

from sfl_flower.attacks.attack import ATTACKS, attack
from sfl_flower.attacks.defences import check_defence
from sfl_flower.attacks.halves import Trained
from sfl_flower.attacks.report import made_folder, print_attack, write_attack
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.cli.given import TASK_HELP, given_task, read_pairs
from sfl_flower.cli.places import at_home
from sfl_flower.errors import ConfigError
from sfl_flower.options import read_fields
from sfl_flower.task import SplitTask
from sfl_flower.tasks import TASKS

__all__ = ["add_attack"]

_OWN = ", ".join(field.name.replace("_", "-") for field in fields(AttackSettings))


def add_attack(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "attack",
        allow_abbrev=False,
        help="say what a server can work out of smashed data, by cut and defence",
        description=(
            "Attack the client half of a model: reconstruct inputs and infer labels, at some cuts, "
            "with and without defences, beside what a guess reaches."
        ),
        epilog="Example: sfl attack digits --cut fc1,tanh1 --out runs/attack",
    )
    parser.add_argument("task", nargs="?", help=f"{TASK_HELP} (default: that of --run)")
    parser.add_argument(
        "--cut", metavar="CUT,...", help="with commas between them (default: the task's own)"
    )
    parser.add_argument(
        "--defence", action="append", default=[], metavar="CHAIN",
        help="what clients do to smashed data, as often as wanted, each beside the plain client: "
        "clip:C, noise:S, or an encoding such as int4; with commas one after another",
    )  # fmt: skip
    parser.add_argument(
        "--attacks", default=",".join(ATTACKS),
        help="with commas between them: "
        + "; ".join(f"{name}, {said}" for name, said in ATTACKS.items()) + " (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--run", type=at_home, metavar="DIR",
        help="attack the weights that a run saved last, not the task's first weights",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="everything drawn follows from it")
    parser.add_argument(
        "--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
        help=f"a setting of the attack ({_OWN}), or an option of the task, task.KEY=VALUE",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=at_home, help="write tables, numbers and pictures to this directory"
    )
    parser.set_defaults(action=_attack)


def _attack(parsed: argparse.Namespace) -> None:
    for text in parsed.defence:
        check_defence(text)
    run = None if parsed.run is None else Trained.read(parsed.run)
    given = read_pairs(parsed.settings, "epochs=20")
    own = {key: value for key, value in given.items() if not key.startswith("task.")}
    options = {key[5:]: value for key, value in given.items() if key.startswith("task.")}
    settings = read_fields(AttackSettings, {"seed": parsed.seed, **own}, "attacks")
    cuts = () if parsed.cut is None else parsed.cut.split(",")
    if not all(cuts):
        raise ConfigError(
            f"--cut is '{parsed.cut}'; it must be names of layers with one comma between them."
        )
    task = _task(parsed.task, options, run)
    out = None if parsed.out is None else made_folder(parsed.out)
    report = attack(
        task,
        cuts,
        defences=parsed.defence,
        attacks=parsed.attacks.split(","),
        settings=settings,
        run=run,
        watch=_watch,
        keep=None if out is None else partial(write_attack, out=out),
    )
    print_attack(report)
    if out is not None:
        text = f"Everything is in {out.absolute()}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def _task(name: str | None, options: dict[str, Any], run: Trained | None) -> SplitTask:
    """Return the task that is named, or the run's; options of the run are kept where it is its."""
    if run is None:
        if name is None:
            raise ConfigError("Name what to attack: sfl attack TASK, or --run DIR.")
        return given_task(name, options)
    told, kept = run.task
    if name is None and told not in TASKS:
        raise ConfigError(
            f"The run in {run.path} is of '{told}', which is none of the ready-made tasks; name "
            f"what gave it: sfl attack MODULE:ATTRIBUTE --run {run.path}."
        )
    if name is None or name == told:
        return given_task(told, {**kept, **options})
    return given_task(name, options)


def _watch(what: str) -> None:
    if sys.stderr.isatty():
        Console(stderr=True).print(f"attacking {what}", highlight=False, markup=False)
