"""The `sfl run` command."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sfl_flower.callbacks import CALLBACKS, read_callbacks
from sfl_flower.cli.given import TASK_HELP, find, given_task, read_pairs
from sfl_flower.cli.places import at_home, free_place, last_place, usual_place
from sfl_flower.config import RunConfig
from sfl_flower.methods import METHODS, read_options
from sfl_flower.presets import load_preset
from sfl_flower.report import RunProgress, print_tables
from sfl_flower.report.conduct import conduct_lines, rounds_each
from sfl_flower.run.resume import RESUME
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import BACKENDS, run_plan

__all__ = ["add_run"]

_FLAGS = ("task", "method", "rounds", "clients", "sampled", "seed")


def add_run(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    run = commands.add_parser(
        "run",
        help="train a task with a method on virtual clients",
        description="Train a task with a method on virtual clients.",
        epilog="'sfl options' lists every key that --set takes. Example: sfl run --task digits "
        "--method ho_sfl --rounds 100 --set probes=8 --callback early_stopping:accuracy,patience=5",
        allow_abbrev=False,
    )
    run.add_argument("--preset", help="a published experiment; what else is given overrides it")
    run.add_argument("--task", help=TASK_HELP)
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
    run.add_argument(
        "--out",
        type=at_home,
        help="run directory (default: runs/TASK-METHOD-seedSEED, numbered where that is taken)",
    )
    run.add_argument(
        "--resume",
        nargs="?",
        const="last",
        default="",
        choices=RESUME,
        help="go on from the last checkpoint in --out, or in the last of the default directories, "
        "or from the checkpoint before it",
    )
    run.add_argument(
        "--callback",
        dest="callbacks",
        metavar="NAME[:VALUES]",
        action="append",
        default=[],
        help=f"told of the run, and may end it; as often as needed: {', '.join(CALLBACKS)}, or "
        "MODULE:NAME of your own",
    )
    run.add_argument("--backend", choices=BACKENDS, default="ray", help="Ray, or this process")
    run.add_argument("--verbose", action="store_true", help="show Flower's own log")
    run.set_defaults(action=_run)


def _run(parsed: argparse.Namespace) -> None:
    options = load_preset(parsed.preset).options if parsed.preset else {}
    for name in _FLAGS:
        if getattr(parsed, name) is not None:
            options[name] = getattr(parsed, name)
    options |= read_pairs(parsed.settings)
    if ":" in str(options.get("method")):
        options["method"] = find("--method", options["method"])
    callbacks = read_callbacks(parsed.callbacks, partial(find, "--callback"))
    config, _, _, task_options = read_options(options)
    task = given_task(config.task, task_options)
    options["task"] = task.name
    out = parsed.out or _default_place(read_options(options)[0], parsed.resume)
    plan = Plan.read(options, out, parsed.resume, callbacks)
    console = Console()
    console.print(f"Run directory: {out}", markup=False, highlight=False, soft_wrap=True)
    with RunProgress() as progress:
        progress.start(f"{plan.config.task} · {plan.config.method}", plan.config.rounds)
        result = run_plan(
            task, plan, backend=parsed.backend, observer=progress.update, verbose=parsed.verbose
        )
    print_tables([result.summary])
    rounds = rounds_each(result.history, plan.config.cohort / plan.config.clients)
    for line in conduct_lines(result.summary.clients, rounds):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if result.ended:
        console.print(result.ended, markup=False, highlight=False, soft_wrap=True)
    if privacy := result.summary.terms.get("privacy"):
        console.print(f"Privacy: {privacy}", markup=False, highlight=False, soft_wrap=True)
    where = f"Everything is in {out.absolute()}"
    console.print(where, markup=False, highlight=False, soft_wrap=True)


def _default_place(config: RunConfig, resume: str) -> Path:
    usual = usual_place(config)
    return last_place(usual) if resume else free_place(usual)
