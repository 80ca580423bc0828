"""The `sfl` command: run a method on a task, compare methods, profile cuts, list options, demo."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl_flower.cli.compare import add_compare
from sfl_flower.cli.demo import DEMO_METHODS, run_demo
from sfl_flower.cli.profile import add_profile
from sfl_flower.config import RunConfig, unknown
from sfl_flower.errors import ConfigError, CutError, SflError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.presets import PRESETS, load_preset
from sfl_flower.report import RunProgress, print_tables
from sfl_flower.run.resume import RESUME
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import BACKENDS, run_plan
from sfl_flower.tasks import TASKS, load_task, task_options

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        Exit status: 0 when the run is complete, 1 when it failed, 2 when it was asked for wrongly.
    """
    parsed = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        parsed.action(parsed)
    except SflError as error:
        # Texts in brackets are not rich's markup.
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2 if isinstance(error, ConfigError | CutError) else 1
    except KeyboardInterrupt:
        console.print("stopped; --resume, or the same comparison, goes on from the last checkpoint")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sfl", description="Split federated learning with forward-only clients, on Flower."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="train a ready-made task with a method on virtual clients",
        description="Train a ready-made task with a method on virtual clients.",
        epilog="'sfl options' lists every key that --set takes.",
    )
    run.add_argument("--preset", help="a published experiment; what else is given overrides it")
    run.add_argument("--task", help=f"one of: {', '.join(TASKS)}")
    run.add_argument("--method", help=f"one of: {', '.join(METHODS)}; or MODULE:NAME of your own")
    run.add_argument("--rounds", type=int, help="rounds to train")
    run.add_argument("--clients", type=int, help="virtual clients")
    run.add_argument("--sampled", type=int, help="clients per round (0: all)")
    run.add_argument("--seed", type=int, help="the run's only source of randomness")
    run.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other option, as often as needed; task options begin with 'task.'",
    )
    run.add_argument("--out", type=Path, help="run directory (default: runs/TASK-METHOD-seedSEED)")
    run.add_argument(
        "--resume",
        nargs="?",
        const="last",
        default="",
        choices=RESUME,
        help="go on from the last checkpoint in --out, or from the one before it",
    )
    run.add_argument("--backend", choices=BACKENDS, default="ray", help="Ray, or this process")
    run.add_argument("--verbose", action="store_true", help="show Flower's own log")
    run.set_defaults(action=_run)
    add_compare(commands)
    add_profile(commands)

    options = commands.add_parser("options", help="list the options of runs, methods and tasks")
    options.add_argument("name", nargs="?", help="a method or a task (default: options of any run)")
    options.set_defaults(action=_options)

    presets = commands.add_parser("presets", help="list the published experiments and their values")
    presets.add_argument("name", nargs="?", help="one of them (default: all)")
    presets.set_defaults(action=_presets)

    demo = commands.add_parser(
        "demo", help=f"train {', '.join(DEMO_METHODS)} on the digits and compare them"
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="where results go")
    demo.add_argument("--backend", choices=BACKENDS, default="ray", help="Ray, or this process")
    demo.set_defaults(action=lambda parsed: run_demo(parsed.out, parsed.backend))
    return parser


def _run(parsed: argparse.Namespace) -> None:
    options = load_preset(parsed.preset).options if parsed.preset else {}
    for name in ("task", "method", "rounds", "clients", "sampled", "seed"):
        if getattr(parsed, name) is not None:
            options[name] = getattr(parsed, name)
    for pair in parsed.settings:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set got '{pair}'; it takes KEY=VALUE, such as --set probes=8.")
        options[key.replace("-", "_")] = value
    config = read_options(options)[0]
    out = parsed.out or Path("runs") / f"{config.task}-{config.method}-seed{config.seed}"
    plan = Plan.read(options, out, parsed.resume)
    task = load_task(plan.config.task, **plan.task_options)
    with RunProgress() as progress:
        progress.start(f"{plan.config.task} · {plan.config.method}", plan.config.rounds)
        result = run_plan(
            task, plan, backend=parsed.backend, observer=progress.update, verbose=parsed.verbose
        )
    print_tables([result.summary])
    where = f"Everything is in {out.absolute()}"
    Console().print(where, markup=False, highlight=False, soft_wrap=True)


def _options(parsed: argparse.Namespace) -> None:
    name = parsed.name
    if name is None:
        _print_fields("Options of every run", RunConfig)
        hint = f"methods: {', '.join(METHODS)}; tasks: {', '.join(TASKS)}"
        Console().print(f"'sfl options NAME' lists those of one ({hint}).", highlight=False)
    elif name in METHODS:
        _print_fields(f"Options of method {name}", METHODS[name].settings)
    elif name not in TASKS:
        raise unknown("method or task", name, (*METHODS, *TASKS))
    else:
        rows = [(f"task.{key}", value, "") for key, value in task_options(name).items()]
        _print(f"Options of task {name}", rows)


def _presets(parsed: argparse.Namespace) -> None:
    for name in [parsed.name] if parsed.name else PRESETS:
        preset = load_preset(name)
        title = f"{name}\n{preset.title}\n{preset.source}"
        table = Table("option", "value", "given by", title=title, title_justify="left")
        for values, origin in ((preset.paper, "paper"), (preset.ours, "ours")):
            for key, value in values.items():
                table.add_row(key.replace("_", "-"), escape(str(value)), origin)
        Console().print(table)


def _print_fields(title: str, kind: type[Any]) -> None:
    meanings = _meanings(kind)
    _print(title, [(f.name, f.default, meanings.get(f.name, "")) for f in dataclasses.fields(kind)])


def _print(title: str, rows: Sequence[tuple[str, Any, str]]) -> None:
    table = Table("option", "default", "meaning", title=title, title_justify="left")
    for key, default, meaning in rows:
        shown = "" if default == "" else str(default)
        table.add_row(key.replace("_", "-"), escape(shown), escape(meaning))
    Console().print(table)


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Read the meaning of each field from the NumPy docstrings of the class and its bases.

    What a class says of a field stands in place of what its bases say.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    docs = [inspect.cleandoc(part.__doc__ or "") for part in kind.__mro__]
    for line in "\n\n".join(reversed(docs)).splitlines():
        head = re.fullmatch(r"(\w+(?:, \w+)*) : .*", line)
        if head:
            names = head.group(1).split(", ")
            found.update(dict.fromkeys(names, ""))
        elif line.startswith("    ") and names:
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
