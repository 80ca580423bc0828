"""The `sfl compare` command."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sfl_flower.cli.given import TASK_HELP, given_task
from sfl_flower.cli.places import at_home
from sfl_flower.comparison.compare import compare, compare_runs
from sfl_flower.comparison.jobs import Job
from sfl_flower.comparison.pages import print_comparison
from sfl_flower.comparison.rows import CEILING, CONTROL
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.report import RoundRecord, RunProgress
from sfl_flower.run.simulation import BACKENDS

__all__ = ["add_compare"]


def add_compare(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "compare",
        allow_abbrev=False,
        help="train methods at equal samples and put them side by side",
        description=(
            "Train methods at equal samples, on the same partition and initial weights, and put "
            f"them side by side. {CEILING} and {CONTROL} in the form of each method are always in "
            "the table, and forward-only methods are trained as a walk as well, whose steps tell "
            "nothing. The "
            "same command goes on with a comparison that was broken off."
        ),
        epilog="Example: sfl compare --task digits --methods ho_sfl --samples 48000 --out runs/all",
    )
    parser.add_argument("--task", help=TASK_HELP)
    parser.add_argument("--methods", help=f"with commas between them, of: {', '.join(METHODS)}")
    parser.add_argument("--samples", type=int, help="training samples of a run, over all clients")
    parser.add_argument("--seeds", default="3", help="how many seeds, or which: 3,7 (default: 3)")
    parser.add_argument(
        "--server-lrs",
        help="server rates, 0.05,0.1; each row counts at its best on the samples held back",
    )
    parser.add_argument(
        "--tune-seeds",
        type=int,
        default=0,
        help="seeds the server rates are tried with; the others run at the best (default: all)",
    )
    parser.add_argument("--clients", type=int, help="virtual clients")
    parser.add_argument("--sampled", type=int, help="clients per round (0: all)")
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="[METHOD:]KEY=VALUE",
        action="append",
        default=[],
        help="any other option, of every method or of one; task options begin with 'task.'",
    )
    parser.add_argument(
        "--memory-matched",
        action="store_true",
        help="first order once more, in micro-batches that take no more memory than forwards",
    )
    parser.add_argument(
        "--walk-rates",
        default="1",
        help="client rates of walks, as multiples of their method's: 0.5,1,2 (default: 1)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="inline", help="this process or Ray")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, inline only")
    parser.add_argument(
        "--from",
        dest="runs",
        metavar="DIR",
        type=at_home,
        nargs="+",
        help="train nothing; put these run directories side by side",
    )
    parser.add_argument("--out", type=at_home, required=True, help="directory of runs and results")
    parser.set_defaults(action=partial(_compare, parser))


def _compare(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    if parsed.runs:
        own = {"runs", "out", "action"}
        for name, value in vars(parsed).items():
            if name not in own and value != parser.get_default(name):
                option = {"settings": "set"}.get(name, name.replace("_", "-"))
                raise ConfigError(f"--{option} has no place beside --from, which trains nothing.")
        comparison = compare_runs(parsed.runs, parsed.out)
    else:
        comparison = _train(parsed)
    print_comparison(comparison)
    text = f"Everything is in {parsed.out.absolute()}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _train(parsed: argparse.Namespace) -> Any:
    for name in ("task", "methods", "samples"):
        if getattr(parsed, name) is None:
            raise ConfigError(f"--{name} is missing; a comparison needs it, or --from DIR ...")
    options: dict[str, Any] = {
        name: getattr(parsed, name)
        for name in ("clients", "sampled")
        if getattr(parsed, name) is not None
    }
    methods: dict[str, dict[str, Any]] = {}
    for name in _list(parsed.methods):
        if name in methods:
            raise ConfigError(f"--methods names '{name}' twice; name each method once.")
        methods[name] = {}
    for pair in parsed.settings:
        key, equals, value = pair.partition("=")
        method, colon, own = key.rpartition(":")
        if not equals or not own or (colon and not method):
            raise ConfigError(
                f"--set got '{pair}'; it takes KEY=VALUE or METHOD:KEY=VALUE, such as --set "
                "ho_sfl:probes=8."
            )
        if not colon:
            options[key.replace("-", "_")] = value
        elif method in methods or method in (CONTROL, CEILING):
            methods.setdefault(method, {})[own] = value
        else:
            known = ", ".join({**methods, CONTROL: {}, CEILING: {}})
            raise ConfigError(f"--set got '{pair}'; the methods of this comparison are {known}.")
    with RunProgress(keep=False) as progress:
        return compare(
            given_task(parsed.task, {}) if ":" in parsed.task else parsed.task,
            methods,
            samples=parsed.samples,
            seeds=_seeds(parsed.seeds),
            out=parsed.out,
            server_lrs=_numbers("server-lrs", parsed.server_lrs, float),
            tune_seeds=parsed.tune_seeds,
            memory_matched=parsed.memory_matched,
            walk_rates=_numbers("walk-rates", parsed.walk_rates, float),
            backend=parsed.backend,
            workers=parsed.workers,
            on_round=_Screen(progress),
            **options,
        )


class _Screen:
    """Shows the rounds of runs that may be side by side."""

    def __init__(self, progress: RunProgress) -> None:
        self._progress = progress
        self._shown: dict[Path, Any] = {}

    def __call__(self, job: Job, record: RoundRecord) -> None:
        if job.out not in self._shown:
            rounds = int(job.options["rounds"])
            done = max(0, record.round - 1)
            self._shown[job.out] = self._progress.start(job.label, rounds, done)
        self._shown[job.out](record)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> int | list[int]:
    found = _numbers("seeds", text, int)
    return found if "," in text else found[0] if found else 0


def _numbers(name: str, text: str | None, kind: type[Any]) -> list[Any]:
    try:
        return [kind(part) for part in _list(text or "")]
    except ValueError:
        raise ConfigError(
            f"--{name} is '{text}'; it must be numbers with commas between them."
        ) from None
