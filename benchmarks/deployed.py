"""Where the seconds of a deployed exchange go: a SuperLink and two SuperNodes on localhost.

The package's own app trains, and its processes note what happens when (`benchmarks.deployed_app`).
One federation serves three runs of HO-SFL on the digits: one mini-batch an exchange, several, and
one again on SuperNodes whose client processes start warm (`sfl warm`).  Before that, and without
Flower's processes, the imports of a client app are timed beside those that every client needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from statistics import median
from typing import Any

from benchmarks.deployed_app import spent
from benchmarks.figure import Figure
from benchmarks.programs import programs
from tests.deployment.federation import REPOSITORY, Federation, flwr, run_config, statuses

__all__ = ["add_arguments", "run"]

NODES, BATCH = 2, 8
MOST_START, MOST_STEP = 0.6, 0.1
FLOOR = "import numpy, torch, flwr.clientapp"
CLIENT = "import sfl_flower.run.client_app"
STARTS = 5
METERED = 2
"""First rounds, which are not counted: clients measure memory in one, operations in the other."""
QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}
"""What Flower lets a SuperExec do oftener than once a second."""
IDLE_S = 15.0
STAGES = (
    ("until the client process is there", "pushed", "began"),
    ("interpreter, Flower, message and bundle", "began", "entered"),
    ("imports of the app", "entered", "imported"),
    ("from the app to its handler", "imported", "handling"),
    ("the handler", "handling", "handled"),
    ("until the server has the reply", "handled", "pulled"),
)
"""Of an exchange: what it is, and between which notes."""
APP = """\
[project]
name = "deployed-benchmark"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "sfl-flower"

[tool.flwr.app.components]
serverapp = "benchmarks.deployed_app:server_app"
clientapp = "benchmarks.deployed_app:client_app"

[tool.flwr.app.config]
task = "digits"
method = "ho_sfl"
rounds = 4
clients = 2
batch-size = 8
eval-every = 1000
options = ""
"""

Notes = dict[str, list[dict[str, Any]]]


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--deployed-rounds", type=int, default=4, help="rounds of each run, at least 3 (default 4)"
    )
    parser.add_argument(
        "--deployed-options",
        default="pipeline=true minibatches=8",
        metavar="OPTIONS",
        help="of the run that is held against one mini-batch an exchange (default pipelined, 8)",
    )
    parser.add_argument(
        "--deployed-steps", type=int, default=8, help="its steps in a round (default 8)"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the imports of a client app, then where the time of a deployed exchange goes."""
    yield from _imports()
    rounds = args.deployed_rounds
    with _federation() as federation:
        for partition in range(NODES):
            federation.supernode(partition)
        idle = _idle(federation)
        yield Figure(
            "superlink_s_per_node_minute",
            60 * idle,
            "s",
            setting=f"processor time of the SuperLink for a SuperNode that waits, {NODES} of them "
            f"over {IDLE_S:g} s; each asks for work every 3 s",
            lower_is_better=True,
        )
        plain = _train(federation, "plain", rounds, "")
        yield _exchange("deployed_exchange_s", plain, "SuperNodes as Flower starts them")
        yield _superlink(plain, idle)
        several = _train(federation, "several", rounds, args.deployed_options)
        yield _steps(plain, several, rounds, args)
        for partition in range(NODES):
            federation.stop(partition)
            federation.supernode(partition, warm=True, **QUICK)
        warm = _train(federation, "warm", rounds, "")
    yield _exchange("deployed_exchange_warm_s", warm, "`sfl warm`, SuperExec looks every 0.05 s")
    cold_s, warm_s = (median(_lengths(notes, "began", "imported")) for notes in (plain, warm))
    yield Figure(
        "client_start_warm_ratio",
        warm_s / cold_s,
        "ratio",
        MOST_START,
        f"a client process from its beginning to the app's handlers, started by `sfl warm` "
        f"({warm_s:.2f} s) beside as Flower starts it ({cold_s:.2f} s): medians of "
        f"{len(_exchanges(warm))} and {len(_exchanges(plain))} messages of the runs above",
        lower_is_better=True,
    )


def _imports() -> Iterator[Figure]:
    took: dict[str, list[float]] = {FLOOR: [], CLIENT: []}
    for _ in range(STARTS):
        for code, each in took.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
            each.append(time.perf_counter() - began)
    floor, client = min(took[FLOOR]), min(took[CLIENT])
    setting = (
        f"a new interpreter imports the client app and ends ({client:.2f} s), or numpy, torch and "
        f"flwr.clientapp alone ({floor:.2f} s), which every client needs: best of {STARTS} "
        "each, in turn"
    )
    yield Figure("client_start_s", client, "s", setting=setting)
    yield Figure(
        "client_start_vs_floor", client / floor, "ratio", setting=setting, lower_is_better=True
    )


def _exchange(name: str, notes: Notes, how: str) -> Figure:
    stages = ", ".join(
        f"{said} {median(_lengths(notes, first, last)):.2f}" for said, first, last in STAGES
    )
    return Figure(
        name,
        median(_lengths(notes, "pushed", "pulled")),
        "s",
        setting=f"from a request's push to its reply, HO-SFL on the digits, {NODES} nodes, {how}: "
        f"median of {len(_exchanges(notes))} messages; medians of its parts in seconds: {stages}",
        lower_is_better=True,
    )


def _idle(federation: Federation) -> float:
    """Return the SuperLink's processor seconds for a second of a node that waits."""
    pid = int((federation.directory / "notes" / "superlink").read_text())
    time.sleep(5.0)  # they register
    began, before = time.monotonic(), spent(pid)
    time.sleep(IDLE_S)
    return (spent(pid) - before) / (time.monotonic() - began) / NODES


def _superlink(notes: Notes, idle: float) -> Figure:
    rounds = {int(note["round"]): note for note in notes["round"]}
    first, last = rounds[METERED], rounds[max(rounds)]
    used = last["superlink"] - first["superlink"]
    waited = (last["at"] - first["at"]) * idle * NODES
    looks = sum(first["at"] < note["at"] < last["at"] for note in notes["looked"])
    exchanges = len(_exchanges(notes))
    return Figure(
        "superlink_s_per_exchange",
        (used - waited) / exchanges,
        "s",
        setting=f"processor time of the SuperLink for a request and its reply, over {exchanges} "
        f"messages of HO-SFL on the digits, less that for nodes that wait ({waited:.2f} of "
        f"{used:.2f} s); {looks} looks for replies are in it, which a larger cohort shares",
        lower_is_better=True,
    )


def _steps(plain: Notes, several: Notes, rounds: int, args: argparse.Namespace) -> Figure:
    steps = args.deployed_steps
    one, many = _round_s(plain), _round_s(several) / steps
    return Figure(
        "deployed_s_per_step",
        many / one,
        "ratio",
        MOST_STEP,
        f"seconds a step with '{args.deployed_options}', {steps} steps a round ({many:.2f} s), "
        f"over those with one mini-batch an exchange ({one:.2f} s), HO-SFL on the digits, "
        f"{NODES} nodes: means over rounds {METERED + 1} to {rounds}",
        lower_is_better=True,
    )


def _round_s(notes: Notes) -> float:
    """Return the mean seconds of a round that counts."""
    ends = _ends(notes)
    last = max(ends)
    return (ends[last] - ends[METERED]) / (last - METERED)


def _ends(notes: Notes) -> dict[int, float]:
    return {int(note["round"]): float(note["at"]) for note in notes["round"]}


def _exchanges(notes: Notes) -> list[dict[str, float]]:
    """Return when what happened of each message that counts, by the names of the notes."""
    begin = _ends(notes)[METERED]
    pushed = {note["message"]: note["at"] for note in notes["pushed"]}
    pulled = {note["message"]: note["at"] for note in notes["pulled"]}
    return [
        {**note, "pushed": pushed[note["message"]], "pulled": pulled[note["message"]]}
        for note in notes["client"]
        if note["message"] in pulled and pushed[note["message"]] > begin
    ]


def _lengths(notes: Notes, first: str, last: str) -> list[float]:
    return [each[last] - each[first] for each in _exchanges(notes)]


def _train(federation: Federation, label: str, rounds: int, options: str) -> Notes:
    """Train once, and return what the processes of this run noted."""
    folder = federation.directory / "notes"
    for file in folder.glob("*.jsonl"):
        file.unlink()
    app = federation.directory / "app"
    app.mkdir(exist_ok=True)
    (app / "pyproject.toml").write_text(APP, encoding="utf-8")
    values: Mapping[str, Any] = {"rounds": rounds, "options": options}
    with redirect_stdout(sys.stderr):
        flwr("run", str(app), "localhost", "--stream", "--run-config", run_config(values), cwd=app)
        found = statuses("localhost", cwd=app)
    if "finished:completed" not in found[0]:
        raise RuntimeError(f"The run {label!r} ended as {found[0]}.")
    return {
        file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in folder.glob("*.jsonl")
    }


@contextmanager
def _federation() -> Iterator[Federation]:
    """Start a SuperLink in a folder of its own; end all that was started there."""
    with programs("sfl-deployed-") as place:
        notes = place.folder / "notes"
        notes.mkdir()
        os.environ["SFL_NOTES"] = str(notes)
        federation = Federation(place.start, place.home, place.folder, clients=NODES)
        federation.superlink()
        (notes / "superlink").write_text(str(place.started[0].pid))
        yield federation
