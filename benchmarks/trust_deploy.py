"""A SuperNode of `examples/deployment` that is killed: how long it is away, what it catches up by.

By Flower's own clock a killed SuperNode counts as there for up to a minute, and is refused as long,
which is no time for a test.  The deployment of the example trains HO-SFL on the digits with all
three clients in every round; one is killed (SIGKILL, with all that it started) and started again
until it stays, as its unit and its container do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from benchmarks.programs import programs
from sfl_flower.report import RunDirectory
from tests.deployment.example import CLIENT_HALF_BYTES, NODES, Deployment, certificates, service
from tests.deployment.federation import (
    PATIENCE_S,
    REPOSITORY,
    flwr,
    free_ports,
    program,
    run_config,
    statuses,
    wait_for,
)
from tests.deployment.runs import kill_tree, rounds

__all__ = ["add_arguments", "figures"]

KILLED, KILLED_AFTER = 1, 2
"""Which SuperNode is killed, and after which round."""
AGAIN_S = 5.0
"""Until it is started again, each time."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    parser.add_argument(
        "--trust-deploy-rounds", type=int, default=12, help="rounds of the run (default 12)"
    )


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield how long a killed SuperNode was away, and whether it caught up by replay."""
    total = args.trust_deploy_rounds
    with _place() as deployment:
        out = deployment.folder / "run"
        command = _train(deployment, out, total)
        wait_for(
            f"round {KILLED_AFTER}",
            lambda: rounds(out) >= KILLED_AFTER or command.poll() is not None,
        )
        killed = time.monotonic()
        kill_tree(deployment.running[f"node-{KILLED}"])
        refusals = _again(deployment, out, command)
        back = time.monotonic() - killed
        command.wait(timeout=PATIENCE_S)
        found = statuses("secure", cwd=REPOSITORY)
        if found != ["finished:completed"]:
            raise RuntimeError(f"The run ended as {found}.")
        history = RunDirectory(out).history
        ledger = json.loads((out / "ledger.json").read_text(encoding="utf-8"))
        stand = [_digest(deployment.folder / "state" / f"node-{node}") for node in range(NODES)]
    setting = (
        f"one of {NODES} SuperNodes killed after round {KILLED_AFTER} of {total}, started again "
        f"every {AGAIN_S:g} s, HO-SFL on the digits over TLS with keys; it was refused {refusals} "
        f"times, and answered in the last round: {history[-1].replies} replies"
    )
    yield Figure("deployed_kill_back_s", back, "s", setting=setting, lower_is_better=True)
    equal = sum(digest == history[-2].digest for digest in stand) / NODES
    yield Figure("deployed_kill_equal", equal, "ratio", 1.0, f"{setting}; digests of the replicas")
    downloads = ledger["bytes"]["weights"]["down"] / CLIENT_HALF_BYTES
    yield Figure(
        "deployed_kill_downloads",
        downloads,
        "downloads",
        float(NODES),
        f"{setting}; each client downloads once, when the run begins",
        lower_is_better=True,
    )


def _train(deployment: Deployment, out: Path, total: int) -> subprocess.Popen[str]:
    """Start the deployment and a run on it."""
    deployment.superlink(service("superlink"), deployment.contained("superlink"))
    for node in range(NODES):
        key = deployment.folder / "secrets" / f"node-{node}.pub"
        flwr("supernode", "register", str(key), "secure", cwd=REPOSITORY)
        _supernode(deployment, node)
    settings: dict[str, Any] = {
        "task": "digits",
        "method": "ho_sfl",
        "rounds": total,
        "clients": NODES,
        "batch-size": 8,
        "out": str(out),
        "options": "sync=replay",
    }
    return deployment.start(
        program("flwr"), "run", ".", "secure", "--stream", "--run-config", run_config(settings),
        name="flwr-run", cwd=REPOSITORY,
    )  # fmt: skip


def _supernode(deployment: Deployment, node: int) -> None:
    name = f"supernode-{node}"
    deployment.supernode(node, service(name), deployment.contained(name))


def _again(deployment: Deployment, out: Path, command: subprocess.Popen[str]) -> int:
    """Start the killed SuperNode until it stays and has answered; return how often it did not."""
    refusals, name = 0, f"node-{KILLED}"
    log = deployment.folder / f"{name}.log"
    began = len(log.read_text())
    _supernode(deployment, KILLED)
    while "SuperNode ID" not in log.read_text()[began:]:
        if command.poll() is not None:
            raise RuntimeError("The run ended before the SuperNode was back; give it more rounds.")
        if deployment.running[name].poll() is not None:
            refusals += 1
            time.sleep(AGAIN_S)
            _supernode(deployment, KILLED)
        time.sleep(0.2)
    return refusals


def _digest(state: Path) -> str:
    """Return the journal's digest that a node's own file names, empty where it has none."""
    found = sorted(state.glob("sfl_flower/run-*/replica-*"), key=lambda path: path.stat().st_mtime)
    return found[-1].name.split("-")[1] if found else ""


@contextmanager
def _place() -> Iterator[Deployment]:
    """Give a deployment a folder of its own; end all that was started there."""
    with programs("sfl-trust-") as place, redirect_stdout(sys.stderr):
        secrets = place.folder / "secrets"
        certificates("superlink", str(secrets))
        certificates("node", str(secrets), *(f"node-{node}" for node in range(NODES)))
        (port,) = free_ports(1)
        (place.home / "config.toml").write_text(
            f'[superlink.secure]\naddress = "localhost:{port}"\n'
            f'root-certificates = "{secrets / "ca.pem"}"\n',
            encoding="utf-8",
        )
        yield Deployment(place.start, place.folder, port)
