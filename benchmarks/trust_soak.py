"""A thousand rounds of a hundred clients that come and go: memory, files and who stands where.

HO-SFL on a small problem, in this process.  In every round three of ten clients are not there; of
those that are, one reply in twenty is lost, late, doubled or NaN.  In the last rounds all are
there, and end where the journal does.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.faulty_grid import FaultyGrid
from benchmarks.figure import Figure
from benchmarks.small import small_task
from benchmarks.trial import client_app, executed
from sfl_flower.report import RoundRecord
from sfl_flower.run.run import Plan
from sfl_flower.server.mirror import CHECK_PERIOD
from sfl_flower.zo import Journal

__all__ = ["add_arguments", "figures"]

ABSENT, STRUCK = 0.3, 0.05
TIMEOUT = 0.02
EVERY = 10
"""Rounds between checkpoints, and between looks at memory and files."""
WHOLE = 2
"""Rounds at the end in which all clients are there."""
GROWING = ("history.jsonl", "tensorboard")
"""What has a line or an event a round."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    parser.add_argument("--trust-soak-rounds", type=int, default=1000, help="rounds (1000)")
    parser.add_argument("--trust-soak-clients", type=int, default=100, help="clients (100)")


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield what grew since a tenth of the rounds, and who stands at the journal's end."""
    rounds, clients = args.trust_soak_rounds, args.trust_soak_clients
    torch.set_num_threads(1)
    task = small_task(8 * clients, 8)  # a mini-batch each
    options = {
        "task": "small", "method": "ho_sfl", "rounds": rounds, "clients": clients,
        "batch_size": 8, "client_lr": 0.01, "client_optimizer": "momentum", "timeout": TIMEOUT,
        "partition": "iid",
        "eval_every": 50, "checkpoint_every": EVERY, "patience": 100,
    }  # fmt: skip
    memory, files = list[int](), list[int]()
    with tempfile.TemporaryDirectory(prefix="sfl_flower-trust-") as directory:
        out = Path(directory) / "run"
        plan = Plan.read(options, out)
        grid = FaultyGrid(client_app(task, plan), clients, STRUCK, 0, absent=ABSENT)

        def watch(record: RoundRecord) -> None:
            grid.whole = record.round >= rounds - WHOLE
            if record.round % EVERY == 0:
                gc.collect()
                memory.append(_resident())
                files.append(sum(_sizes(out)))

        result = executed(grid, task, plan, watch)
        journal = Journal.load(out / "journal.bin")
        ends = [_stands(grid, node) for node in grid.nodes]
        growing = {name: sum(_sizes(out / name)) for name in GROWING}
        kept = (out / "journal.bin").stat().st_size
    early = len(memory) // 10
    setting = (
        f"{rounds} rounds, {clients} clients of which {ABSENT:g} are not there, "
        f"{STRUCK:g} of replies struck ({sum(grid.struck[k] for k in grid.struck)} replies and "
        "faults)"
    )
    yield Figure(
        "soak_memory_growth",
        memory[-1] / memory[early],
        "ratio",
        1.05,
        f"{setting}: resident {memory[early] / 2**20:.1f} MiB after a tenth of the rounds, "
        f"{memory[-1] / 2**20:.1f} MiB at the end",
        lower_is_better=True,
    )
    # The journal grows until it is compacted: what counts is the most of that.
    settled = max(3 * early, 2 * CHECK_PERIOD // EVERY)
    first, last = max(files[: settled + 1]), max(files[-2 * early - 1 :])
    lines = len(result.history)
    yield Figure(
        "soak_directory_growth",
        last / first,
        "ratio",
        1.05,
        f"{setting}: {first} bytes of a run directory at most to round {settled * EVERY}, {last} "
        f"in the last two tenths, journal {kept} with {journal.version - journal.base} of "
        f"{journal.version} entries; beside them a round "
        + " and ".join(f"{size / lines:.0f} bytes of {name}" for name, size in growing.items()),
        lower_is_better=True,
    )
    last_two = [(record.version, record.digest) for record in result.history[-2:]]
    equal = sum(end in last_two for end in ends) / clients
    yield Figure(
        "soak_equal_digests",
        equal if len(set(ends)) == 1 else 0.0,
        "share",
        1.0,
        f"{setting}: clients that stand where the journal's head is, or one update before it, as "
        f"the last update is nobody's request yet; {len(set(ends))} different places",
    )


def _stands(grid: FaultyGrid, node: int) -> tuple[int, str]:
    record = grid.contexts[node].state.config_records.get("position")
    if record is None:
        return -1, ""
    return int(str(record["version"])), str(record["digest"])


def _sizes(path: Path) -> Iterator[int]:
    if path.is_file():
        yield path.stat().st_size
        return
    for below in path.iterdir() if path.is_dir() else ():
        if below.name not in GROWING or path.name in GROWING:
            yield from _sizes(below)


def _resident() -> int:
    """Return the bytes of this process that are in memory."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
