"""A server killed at random moments and started again: the same bits as one that never died.

The server of a run, with its clients in one process, is a process of its own and ends by SIGKILL:
either by the clock, at a random share of the time that a clean run takes, or at one of the moments
when it opens, renames, links or removes a file of its run directory.  There a file that is being
written is cut off at a random length, and a line of the history after a few letters, which is what
a process that dies in the middle of writing leaves.  Every third is killed once more as it resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.figure import Figure
from benchmarks.small import METHOD_SETTINGS, small_task
from sfl_flower import simulate
from sfl_flower.data.seeding import generator
from sfl_flower.methods import METHODS
from sfl_flower.options import check_choice
from sfl_flower.report import RunDirectory

__all__ = ["RUNS", "Strike", "add_arguments", "differences", "figures"]

RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, METHOD_SETTINGS.get(name, {})) for name in METHODS},
    "ho_sfl_pipelined": ("ho_sfl", {"pipeline": True, "client_lr": 0.05}),
    "heron_downlink": ("heron", {"local_steps": 2, "downlink": "int8", "head_downlink": "int8"}),
}
"""What is run: every method, and those of its forms that hold more between rounds."""
SHARED: Mapping[str, Any] = {
    "rounds": 4,
    "clients": 4,
    "sampled": 3,
    "batch_size": 8,
    "eval_every": 2,
    "checkpoint_every": 1,
    "server_momentum": 0.9,
}
FREE = ("seconds", "bytes_up", "bytes_down")
"""Fields of a record that a resume may change: clients join and download once more."""
WRITES = ("open", "os.rename", "os.link", "os.remove")
"""Audit events that name a file."""
PRELOADED = (
    "flwr_datasets.partitioner", "matplotlib.backends.backend_agg", "matplotlib.figure",
    "torch._dynamo", "torch.utils.tensorboard",
)  # fmt: skip
"""What a run imports as it goes, and takes ten times as long over as over its rounds."""
LONGEST = 600.0
"""Seconds after which a run counts as hung."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    parser.add_argument("--trust-resume-kills", type=int, default=50, help="kills (default 50)")
    parser.add_argument("--trust-resume-seed", type=int, default=0, help="of the moments")
    said = f"which, with commas between, of: {', '.join(RUNS)} (default all)"
    parser.add_argument("--trust-resume-runs", default=",".join(RUNS), help=said)


class Strike:
    """An audit hook that counts what a process does to files below a directory, and may end it.

    Parameters
    ----------
    directory : Path
        The run directory.
    at : int
        The operation, from 1, at which the process ends by SIGKILL; 0 for none.
    share : float
        How much of a file that is being written is left then, 0 to 1.

    Attributes
    ----------
    count : int
        Operations so far.
    """

    def __init__(self, directory: Path, at: int = 0, share: float = 1.0) -> None:
        self.count = 0
        self._within, self._at, self._share = f"{directory}{os.sep}", at, share
        self._busy = False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """Take note of an event; see `sys.addaudithook`."""
        if self._busy or event not in WRITES or not str(given[0]).startswith(self._within):
            return
        self.count += 1
        if self.count == self._at:
            self._busy = True
            if event == "open":
                self._tear(Path(given[0]), str(given[1]))
            os.kill(os.getpid(), signal.SIGKILL)

    def _tear(self, path: Path, mode: str) -> None:
        if "a" in mode and path.suffix == ".jsonl":
            with path.open("a", encoding="utf-8") as file:
                file.write('{"round": 3, "samples": 144, "exch'[: int(1 + 32 * self._share)])
        elif path.suffix == ".tmp" and path.exists() and path.stat().st_nlink == 1:
            # One with two names is a whole checkpoint on its way to be the previous one.
            os.truncate(path, int(path.stat().st_size * self._share))


@dataclass(frozen=True)
class Clean:
    """A run that nobody killed.

    Attributes
    ----------
    out : Path
        Its directory.
    seconds : float
        How long its process took.
    operations : int
        What it did to files, as `Strike` counts.
    """

    out: Path
    seconds: float
    operations: int


class Bed:
    """Runs a server in a process of its own, below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._clean: dict[str, Clean] = {}

    def clean(self, name: str) -> Clean:
        """Return the run of that name that nobody killed.

        Raises
        ------
        RuntimeError
            If it does not come to its end.
        """
        if name not in self._clean:
            out, began = self._root / f"{name}-clean", time.monotonic()
            ended, news = self.serve(name, out)
            if not ended or news[0] != "done":
                raise RuntimeError(f"{name} does not run: {news}")
            self._clean[name] = Clean(out, time.monotonic() - began, int(news[1]))
        return self._clean[name]

    def serve(
        self, name: str, out: Path, after: float = LONGEST, at: int = 0, share: float = 1.0
    ) -> tuple[bool, tuple[str, Any]]:
        """Start a run, or go on with it, and kill it.

        Parameters
        ----------
        name : str
            A key of `RUNS`.
        out : Path
            Its directory.
        after : float
            Seconds after which it is killed.
        at, share : int, float
            As for `Strike`.

        Returns
        -------
        ended : bool
            Whether it came to an end of its own.
        news : tuple of str and value
            What it said at its end: "done" and its operations, or "failed" and why.
        """
        context = get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        state = out.with_name(f"{out.name}-state")
        state.mkdir(mode=0o700, exist_ok=True)
        process = context.Process(target=_serve, args=(name, out, state, theirs, at, share))
        process.start()
        theirs.close()
        process.join(after)
        process.kill()
        process.join()
        try:
            return True, ours.recv()
        except EOFError:
            return False, ("killed", None)
        finally:
            ours.close()


def _serve(name: str, out: Path, state: Path, told: Connection, at: int, share: float) -> None:
    """Be the server's process."""
    strike = Strike(out, at, share)
    sys.addaudithook(strike)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["SFL_STATE_DIR"] = str(state)  # as clients' files, it outlives the process
    method, settings = RUNS[name]
    occupied = RunDirectory(out, tensorboard=False).occupied
    options = {**SHARED, **settings, "out": out, "resume": occupied}
    try:
        simulate(small_task(), method, backend="inline", **options)
    except BaseException as error:
        told.send(("failed", f"{type(error).__name__}: {error}"))
    else:
        told.send(("done", strike.count))


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the share of killed runs that came to the bits of a clean one.

    Raises
    ------
    ConfigError
        If a run is none of `RUNS`.
    """
    asked = args.trust_resume_runs.split(",")
    for name in asked:
        check_choice("--trust-resume-runs", name, RUNS)
    torch.set_num_threads(1)
    draw = generator("trust resume", args.trust_resume_seed)
    kills, runs, wrong, struck = 0, 0, list[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="sfl_flower-trust-") as directory:
        bed = Bed(Path(directory))
        _preload(asked)
        while kills < args.trust_resume_kills:
            name = asked[runs % len(asked)]
            # Each method in turn by a file and by the clock, however many there are.
            by_file = (runs // len(asked) + runs % len(asked)) % 2 == 0
            clean, out = bed.clean(name), Path(directory) / f"{name}-{runs}"
            for _ in range(2 if runs % 3 == 2 else 1):
                killed = _killed(bed, name, out, clean, draw.random(2).tolist(), by_file)
                kills += killed
                struck["file" if by_file else "clock"] += killed
            ended, news = bed.serve(name, out)
            found = [str(news[1])] if news[0] == "failed" else ["hangs"] if not ended else []
            found = found or differences(clean.out, out)
            if found:
                wrong.append(f"{name}, run {runs}: {'; '.join(found)}")
            runs += 1
    equal = (runs - len(wrong)) / max(1, runs)
    said = f"; not equal: {' | '.join(wrong)}" if wrong else ""
    yield Figure(
        "resume_equal_share",
        equal,
        "share",
        1.0,
        f"{kills} kills of {runs} runs ({struck['file']} at a file, {struck['clock']} by the "
        f"clock), {len(set(asked))} methods and forms: model, journal and history to the bit{said}",
    )


def _preload(names: Iterable[str]) -> None:
    """Import what runs would import one by one: their processes begin with it."""
    for module in PRELOADED:
        import_module(module)
    for name in names:
        method = METHODS[RUNS[name][0]]
        for action in method.handlers:
            method.handler(action)
        assert method.settings


def _killed(bed: Bed, name: str, out: Path, clean: Clean, drawn: list[float], by_file: bool) -> int:
    """Run until the process is killed; return 1, or 0 where there was nothing left to run."""
    moment, share = drawn
    for _ in range(8):
        at = 1 + int(moment * clean.operations) if by_file else 0
        after = LONGEST if by_file else moment * clean.seconds
        ended, _ = bed.serve(name, out, after, at, share)
        if not ended:
            return 1
        moment /= 2  # it was done before: what is left of a run that was killed is shorter
    return 0


def differences(clean: Path, found: Path) -> list[str]:
    """Return in what two run directories differ that a resume must not change.

    Parameters
    ----------
    clean, found : Path
        The directories.
    """
    wrong = []
    for name in ("model.safetensors", "journal.bin"):
        one, two = clean / name, found / name
        if one.exists() != two.exists() or (one.exists() and one.read_bytes() != two.read_bytes()):
            wrong.append(name)
    wanted, got = ([*_records(path)] for path in (clean, found))
    if len(wanted) != len(got):
        wrong.append(f"{len(got)} of {len(wanted)} records")
    for a, b in zip(wanted, got, strict=False):
        wrong += [f"round {a['round']}: {name}" for name in a if a[name] != b.get(name)]
    return wrong


def _records(out: Path) -> Iterator[dict[str, Any]]:
    for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines():
        yield {name: value for name, value in json.loads(line).items() if name not in FREE}
