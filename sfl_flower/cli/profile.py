"""The `sfl profile` command."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from sfl_flower.cli.given import TASK_HELP, build, find, given_task, read_pairs
from sfl_flower.cli.places import at_home
from sfl_flower.errors import ConfigError
from sfl_flower.profiling.profile import Profile, batch_like, profile
from sfl_flower.profiling.tables import print_profile, profile_numbers, profile_plot, write_profile
from sfl_flower.task import SplitTask

__all__ = ["add_profile"]

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_RATES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def add_profile(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "profile",
        allow_abbrev=False,
        help="say what each cut of a model asks of a client, and which to take",
        description=(
            "Profile every legal cut of a model: parameters, operations, smashed data, peak memory "
            "of forwards and of backprop, and each method's memory, bytes and seconds a step."
        ),
    )
    parser.add_argument("--task", help=TASK_HELP)
    parser.add_argument("--model", metavar="MODULE:FUNCTION", help="builds a model of your own")
    parser.add_argument("--input", metavar="SHAPE", help="of one of its inputs: 3x32x32")
    parser.add_argument("--tokens", type=int, default=0, help="inputs are ids below this number")
    parser.add_argument(
        "--set", dest="settings", metavar="task.KEY=VALUE", action="append", default=[],
        help="an option of the task",
    )  # fmt: skip
    parser.add_argument("--trained", default="", help="as task.trained")
    parser.add_argument(
        "--learn", nargs="*", metavar="CHOICE",
        help="say what forwards will learn with these choices of trained parameters, or the usual",
    )  # fmt: skip
    parser.add_argument(
        "--leakage", nargs="?", const=0.0, type=float, metavar="LEAST",
        help="attack what each cut shows, and advise cuts alone at which a decoder is left with "
        "at least this share of a guess's error (default: any)",
    )  # fmt: skip
    parser.add_argument("--cuts", help="with commas between them (default: every legal one)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a mini-batch")
    parser.add_argument("--client-memory", help="what a client has, such as 64MiB")
    parser.add_argument("--bandwidth", default="10Mbit/s", help="such as 10Mbit/s, each way")
    parser.add_argument("--probes", type=int, default=8, help="P of zeroth-order methods")
    parser.add_argument("--estimator", default="forward", help="of zeroth-order methods")
    parser.add_argument("--smashed", default="float32", help="how smashed data travel")
    parser.add_argument("--gradients", default="float32", help="how cut gradients travel")
    parser.add_argument("--sampled", type=int, default=5, help="clients of a round")
    parser.add_argument("--local-steps", type=int, default=1, help="steps between weights")
    parser.add_argument("--slowdown", type=float, default=1.0, help="of a client to this machine")
    parser.add_argument(
        "--seconds", type=float, default=50.0,
        help="how long to go on measuring at the whole batch, the time that predicting takes "
        "included; the rest stays predicted (default: 50)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print numbers, not tables")
    parser.add_argument("--plot", type=at_home, help="write the plot to this PNG")
    parser.add_argument(
        "--out", type=at_home, help="write tables, numbers and plot to this directory"
    )
    parser.set_defaults(action=_profile)


def _profile(parsed: argparse.Namespace) -> None:
    memory = None if parsed.client_memory is None else _size(parsed.client_memory)
    bandwidth = _rate(parsed.bandwidth)
    subject, x = _subject(parsed)
    found = profile(
        subject,
        x,
        batch_size=parsed.batch_size,
        cuts=parsed.cuts.split(",") if parsed.cuts else None,
        client_memory=memory,
        bandwidth=bandwidth,
        probes=parsed.probes,
        sampled=parsed.sampled,
        local_steps=parsed.local_steps,
        slowdown=parsed.slowdown,
        estimator=parsed.estimator,
        smashed=parsed.smashed,
        gradients=parsed.gradients,
        trained=parsed.trained,
        learn=parsed.learn,
        shown=None if parsed.leakage is None else _shown,
        least_error=parsed.leakage or 0.0,
        seconds=parsed.seconds,
        watch=_watch,
    )
    _give(found, parsed)


def _give(found: Profile, parsed: argparse.Namespace) -> None:
    if parsed.json:
        print(json.dumps(profile_numbers(found), indent=2))
    else:
        print_profile(found)
    if parsed.plot:
        profile_plot(found, parsed.plot)
    if parsed.out:
        write_profile(found, parsed.out)
        text = f"Everything is in {parsed.out.absolute()}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def _shown(
    task: SplitTask, cuts: Sequence[str], watch: Callable[[str], None] | None
) -> Mapping[str, float]:
    from sfl_flower.attacks.shown import error_left  # takes a package of its own

    return error_left(task, cuts, watch)


def _watch(name: str) -> None:
    if sys.stderr.isatty():
        Console(stderr=True).print(f"profiling {name}", highlight=False, markup=False)


def _subject(parsed: argparse.Namespace) -> tuple[SplitTask | nn.Module, Tensor | None]:
    if (parsed.task is None) == (parsed.model is None):
        raise ConfigError("Name what to profile: --task TASK, or --model MODULE:FUNCTION.")
    if parsed.model is None:
        options = read_pairs(parsed.settings, "task.trained=norm")
        for key in options:
            if not key.startswith("task."):
                raise ConfigError(f"--set got '{key}'; it takes task.KEY=VALUE here.")
        options = {key.removeprefix("task."): value for key, value in options.items()}
        return given_task(parsed.task, options), None
    if parsed.input is None:
        raise ConfigError("--input is missing; a model needs the shape of one input: 3x32x32.")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", parsed.input):
        raise ConfigError(f"--input is '{parsed.input}'; it must be numbers with x between them.")
    if parsed.batch_size < 1:
        raise ConfigError(f"batch-size is {parsed.batch_size}; it must be at least 1.")
    shape = [int(part) for part in parsed.input.split("x")]
    return _model(parsed.model), batch_like(shape, parsed.batch_size, parsed.tokens)


def _model(text: str) -> nn.Module:
    found = build("--model", text, find("--model", text))
    if not isinstance(found, nn.Module):
        raise ConfigError(f"--model '{text}' gives a {type(found).__name__}; a Module is needed.")
    return found


def _size(text: str) -> int:
    """Return bytes: 64MiB, 64M and 65536 alike in powers of two."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)(?:i?B)?", text.strip())
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"--client-memory is '{text}'; it must be a size such as 64MiB.")
    return int(float(found[1]) * _SIZES[found[2]])


def _rate(text: str) -> float:
    """Return bits per second."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)(?:bit/s|bps)", text.strip())
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"--bandwidth is '{text}'; it must be a rate such as 10Mbit/s.")
    return float(found[1]) * _RATES[found[2]]
