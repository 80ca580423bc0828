"""Rounds of this project beside the published code of others, run from checkouts of it.

Their code runs in a process of its own (`benchmarks.theirs`), a round whenever one of ours has
ended, so both see the same machine in the same minutes.  Nothing of it is in this repository.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from types import TracebackType
from typing import Any, Self

from benchmarks import round as ho_sfl_round
from benchmarks import speed, theirs
from benchmarks.bare_loops import LR, serve
from benchmarks.beside import Worker
from benchmarks.figure import Figure
from benchmarks.published import DECAY, MU
from sfl_flower import simulate
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.report import RoundRecord
from sfl_flower.task import SplitTask

__all__ = ["Theirs", "Turn", "add_arguments", "checkout", "read", "run"]

LEAST = 1.2
METHODS = {
    "splitfed_v2": "sl_single_server",
    "cse_fsl": "cse_fsl",
    "fsl_sage": "fsl_sage",
    "splitfed_v1": "sl_multi_server",
    "fedavg": "fed_avg",
}
"""Our name of a method, and that of FSL-SAGE's repository."""
CHECKOUTS = {
    "fsl_sage": "the root of a checkout of srijith1996/FSL-SAGE",
    "ho_sfl": "the folder HO_SFL_CV of HO-SFL's code (a copy is in tsinghua-fib-lab/AutoSOTA)",
}
CLIENTS, TOTAL, COHORT, BATCH = 5, 100, ho_sfl_round.COHORT, ho_sfl_round.BATCH


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    for name, said in CHECKOUTS.items():
        parser.add_argument(f"--official-{name}", metavar="DIR", type=Path, help=said)
    parser.add_argument(
        "--official-python",
        metavar="FILE",
        default=sys.executable,
        help="an interpreter, 3.11 or newer, with what the checkouts import (default this one)",
    )
    parser.add_argument(
        "--official-methods",
        default=",".join(speed.METHODS),
        help=f"of {', '.join(METHODS)}, with commas (default those with a target)",
    )
    parser.add_argument(
        "--official-probes", default="5", help="P of HO-SFL, several with commas (default 5)"
    )
    parser.add_argument("--official-images", type=int, default=2000, help="of each of 5 clients")
    parser.add_argument(
        "--official-rounds", type=int, default=3, help="to measure of each method (default 3)"
    )
    parser.add_argument(
        "--official-ho_sfl-rounds", type=int, default=15, help="of HO-SFL (default 15)"
    )
    parser.add_argument("--official-threads", type=int, default=2, help="of each side (default 2)")
    parser.add_argument(
        "--official-backend",
        choices=("inline", "ray"),
        default="inline",
        help="of ours: in this process (default), or workers of one thread each beside the server",
    )
    parser.add_argument(
        "--official-limit",
        action="store_true",
        help="run a bare loop of the same arithmetic as well: the most that a ratio could be",
    )
    parser.add_argument(
        "--official-augment",
        action="store_true",
        help="FSL-SAGE's code augments its images, which ours never does",
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield our samples per second over theirs, method by method."""
    methods = args.official_methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(
            f"--official-methods names {unknown[0]!r}; there are {', '.join(METHODS)}."
        )
    probes = [_probes(word) for word in args.official_probes.split(",")]
    folders = {name: getattr(args, f"official_{name}") for name in CHECKOUTS}
    found = {name: checkout(name, folder) for name, folder in folders.items() if folder}
    for name in CHECKOUTS.keys() - found.keys():
        print(_without(name), file=sys.stderr)
    if "fsl_sage" in found:
        for method in methods:
            yield from _first_order(method, found["fsl_sage"], args)
    if "ho_sfl" in found:
        for number in probes:
            yield _ho_sfl(number, found["ho_sfl"], args)


def checkout(name: str, folder: Path) -> Path:
    """Return the folder of a checkout, absolute.

    Raises
    ------
    ConfigError
        If the code that it should have is not in it.
    """
    if not (folder / theirs.FOLDERS[name]).is_file():
        raise ConfigError(
            f"--official-{name} is {folder}, where no {theirs.FOLDERS[name]} is; it must be "
            f"{CHECKOUTS[name]}."
        )
    return folder.resolve()


def _without(name: str) -> str:
    return f"official: nothing is measured without --official-{name} DIR, {CHECKOUTS[name]}."


def _probes(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(
            f"--official-probes has {word!r}; it must be whole numbers from 1, with commas."
        )
    return int(word)


@dataclass(frozen=True)
class Turn:
    """A round: its seconds, seconds of processors, samples, and bytes as the code counts them."""

    seconds: float
    cpu: float
    samples: int
    bytes: int


def read(line: str, of: str) -> Turn:
    """Return the round that a line of `benchmarks.theirs` tells of.

    Raises
    ------
    TrainingError
        If their code stopped; `of` says whose it is.
    """
    if not line:
        raise TrainingError(
            f"{of} ended without an answer, and what it prints is not kept; it may have been "
            "killed for want of memory."
        )
    told = json.loads(line)
    if "error" in told:
        raise TrainingError(
            f"{of} stopped: {told['error']}; --official-python names an interpreter that has "
            "what it imports."
        )
    return Turn(**told)


class Theirs:
    """A checkout in a process of its own, which runs a round when it is asked to.

    Parameters
    ----------
    name : str
        Which, a key of `benchmarks.theirs.FOLDERS`.
    folder : Path
        The checkout.
    python : str
        The interpreter.
    settings : Mapping[str, Any]
        What it is run with, as `benchmarks.theirs` takes it.
    """

    def __init__(self, name: str, folder: Path, python: str, settings: Mapping[str, Any]) -> None:
        # -P: what lies beside the program is not to be found before their modules.
        self._command = [python, "-P", theirs.__file__, name, str(folder), json.dumps(settings)]
        self._of = f"The code in {folder}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def round(self) -> Turn:
        """Run a round.

        Raises
        ------
        TrainingError
            If their code stopped.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it said why, or is gone: the answer tells
        return read(self._process.stdout.readline(), self._of)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._process.communicate("end\n", timeout=60)
        except subprocess.TimeoutExpired:  # in the middle of a round
            self._process.kill()
            self._process.communicate()


class _Watch:
    """Notes the rounds of ours, and lets theirs run one after each that counts."""

    def __init__(
        self, start_up: int, other: Theirs, bare: Callable[[], float] | None = None
    ) -> None:
        self.ours: list[Turn] = []
        self.theirs: list[Turn] = []
        self.bare: list[float] = []
        self._start_up, self._other, self._bare = start_up, other, bare
        self._before: RoundRecord | None = None
        self._since = self._cpu = 0.0

    def __call__(self, record: RoundRecord) -> None:
        seconds, cpu = perf_counter() - self._since, process_time() - self._cpu
        if record.failures or record.rejected:
            raise TrainingError(f"A measured run lost a reply: {'; '.join(record.notes)}")
        if self._before is not None and record.round > self._start_up:
            samples = record.samples - self._before.samples
            sent = record.bytes_up + record.bytes_down
            counted = sent - self._before.bytes_up - self._before.bytes_down
            self.ours.append(Turn(seconds, cpu, samples, counted))
            self.theirs.append(self._other.round())
            if self.theirs[-1].samples != samples:
                raise TrainingError(
                    f"A round of ours took {samples} samples, one of theirs "
                    f"{self.theirs[-1].samples}; they must be the same work."
                )
            if self._bare is not None:
                self.bare.append(self._bare())
        self._before = record
        self._since, self._cpu = perf_counter(), process_time()

    def figure(self, name: str, setting: str, backend: str) -> Figure:
        """Return our samples per second over theirs."""
        ours, others = (median(t.seconds for t in turns) for turns in (self.ours, self.theirs))
        samples, sent = self.ours[-1].samples, self.ours[-1].bytes
        cpu = ""
        if backend == "inline":  # Ray's workers are processes of their own
            spent = [median(turn.cpu for turn in turns) for turns in (self.ours, self.theirs)]
            cpu = f" ({spent[0]:.3g} s and {spent[1]:.3g} s of processors)"
        return Figure(
            name,
            others / ours,
            "ratio",
            LEAST,
            f"{setting}: rounds of {samples} samples, {ours:.3g} s and {others:.3g} s{cpu}, "
            f"medians of {len(self.ours)} in turn; {samples / ours:.0f} and "
            f"{samples / others:.0f} samples/s, best {samples / _best(self.ours):.0f} and "
            f"{samples / _best(self.theirs):.0f}; bytes of the last round, {sent} sent and "
            f"checked, and {self.theirs[-1].bytes} by their counter, which sends nothing",
        )

    def limit(self, name: str) -> Figure:
        """Return what the figure would be if a round of ours were its arithmetic alone."""
        others, bare = median(turn.seconds for turn in self.theirs), median(self.bare)
        return Figure(
            name,
            others / bare,
            "ratio",
            None,
            f"{bare:.3g} s for the forwards, backwards and steps of a round in a bare loop with "
            f"the layout of images and the fused steps of ours, {others:.3g} s for theirs; ours "
            f"takes {median(turn.seconds for turn in self.ours) / bare:.3f} times the bare loop",
        )


def _best(turns: list[Turn]) -> float:
    return min(turn.seconds for turn in turns)


def _first_order(method: str, folder: Path, args: argparse.Namespace) -> Iterator[Figure]:
    images = args.official_images
    settings = {
        "method": METHODS[method],
        "clients": CLIENTS,
        "images": images,
        "batch_size": speed.BATCH,
        "period": speed.PERIOD,
        "lr": LR,
        "augment": args.official_augment,
        "threads": args.official_threads,
    }
    options = {**speed.options(method), "clients": CLIENTS}
    problem = speed.task(CLIENTS * images)
    with ExitStack() as stack:
        bare = None
        if args.official_limit:
            given = (problem, speed.HEAD, CLIENTS, images, speed.BATCH, speed.PERIOD, True)
            worker = stack.enter_context(Worker(serve, *given))
            bare = partial(worker.seconds, method, args.official_threads)
            bare()  # the first turn is not counted
        ours, rounds = (problem, method, options), args.official_rounds
        watch = _beside("fsl_sage", folder, settings, ours, speed.START_UP, rounds, args, bare)
    augmented = ", theirs augmented" if args.official_augment else ""
    setting = (
        f"ResNet-18 to layer2, ImageNet stem, 3x32x32{augmented}, {CLIENTS} IID clients x "
        f"{images} images, batch {speed.BATCH}, one local epoch a round, q = {speed.PERIOD}, Adam "
        f"{LR:g} without decay, no alignment; ours {_ours(args)}, FSL-SAGE's repository on "
        f"{args.official_threads} threads"
    )
    yield watch.figure(f"official_{method}", setting, args.official_backend)
    if args.official_limit:
        yield watch.limit(f"official_{method}_limit")


def _ho_sfl(probes: int, folder: Path, args: argparse.Namespace) -> Figure:
    settings = {
        "clients": TOTAL,
        "sampled": COHORT,
        "batch_size": BATCH,
        "probes": probes,
        "mu": MU,
        "lr": LR,
        "weight_decay": DECAY,
        "threads": args.official_threads,
    }
    options = ho_sfl_round.options(clients=TOTAL, probes=probes, directions="shared")
    watch = _beside(
        "ho_sfl",
        folder,
        settings,
        ("synthetic", "ho_sfl", options),
        ho_sfl_round.START_UP[1],
        args.official_ho_sfl_rounds,
        args,
    )
    setting = (
        f"ResNet-18 to layer2, ImageNet stem, 3x32x32, {COHORT} of {TOTAL} clients x {BATCH}, P = "
        f"{probes}, directions shared (theirs normal, ours Rademacher), AdamW {LR:g} with decay "
        f"{DECAY:g}; ours {_ours(args)}, HO-SFL's vision runner on {args.official_threads} threads"
    )
    name = "official_ho_sfl" if probes == ho_sfl_round.PROBES else f"official_ho_sfl_{probes}"
    return watch.figure(name, setting, args.official_backend)


def _beside(
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    ours: tuple[SplitTask | str, str, Mapping[str, Any]],
    start_up: int,
    rounds: int,
    args: argparse.Namespace,
    bare: Callable[[], float] | None = None,
) -> _Watch:
    task, method, options = ours
    threads = args.official_threads
    with Theirs(name, folder, args.official_python, settings) as other:
        other.round()  # the first is not counted: FSL-SAGE aligns, memory is taken
        watch = _Watch(start_up, other, bare)
        simulate(
            task,
            method,
            backend=args.official_backend,
            on_round=watch,
            **{
                **options,
                "rounds": start_up + rounds,
                "client_threads": threads if args.official_backend == "inline" else 1,
                "server_threads": threads,
            },
        )
    return watch


def _ours(args: argparse.Namespace) -> str:
    if args.official_backend == "inline":
        return f"inline on {args.official_threads} threads"
    return f"on Ray's workers of one thread, the server on {args.official_threads}"
