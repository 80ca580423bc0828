"""The deployment of `examples/deployment`, by the commands in its files: TLS, keys, and kills."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfl_flower import simulate
from sfl_flower.report import RunDirectory
from tests.deployment.example import (
    CLIENT_HALF_BYTES,
    NODES,
    Command,
    Deployment,
    certificates,
    service,
    unit_command,
)
from tests.deployment.federation import (
    HTTP,
    PATIENCE_S,
    REPOSITORY,
    flwr,
    free_ports,
    program,
    run_config,
    statuses,
    wait_for,
)
from tests.deployment.runs import assert_same_run, kill_tree, rounds

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not HTTP, reason="these options are those of Flower 1.36 and later"),
]

REFUSED = 305
"""Exit code of a SuperNode that cannot connect, before it is cut to one byte."""
# The seed whose cohorts are clients 1 and 2, 0 and 2, 0 and 1, 0 and 2.
OPTIONS: dict[str, Any] = {
    "task": "digits",
    "method": "ho_sfl",
    "rounds": 4,
    "clients": NODES,
    "sampled": 2,
    "batch_size": 8,
    "seed": 2,
    "partition": "iid",
}


def refused(deployment: Deployment, name: str, key: Path, roots: Path) -> str:
    """Start a SuperNode, by Flower alone, that has to end; return what it says."""
    (port,) = free_ports(1)
    options = {
        "--root-certificates": roots,
        "--auth-supernode-private-key": key,
        "--superlink": f"localhost:{deployment.port}",
        "--host": "127.0.0.1",
        "--port": port,
    }
    deployment.run(name, Command(
        [program("flower-supernode"), *(f"{key}={value}" for key, value in options.items())], {}
    ))  # fmt: skip
    assert deployment.running[name].wait(timeout=PATIENCE_S) != 0
    said = (deployment.folder / f"{name}.log").read_text()
    assert f"Exit Code: {REFUSED}" in said
    return said


def test_c12_the_example_trains_over_tls_survives_kills_and_lets_nobody_else_in(
    tmp_path: Path,
    flwr_home: Path,
    start_process: Callable[..., subprocess.Popen[str]],
) -> None:
    secrets, other = tmp_path / "secrets", tmp_path / "other"
    for place in (secrets, other):
        assert certificates("superlink", str(place)) == 0
    assert certificates("node", str(secrets), *(f"node-{n}" for n in range(NODES)), "unknown") == 0
    (port,) = free_ports(1)
    (flwr_home / "config.toml").write_text(
        f'[superlink.secure]\naddress = "localhost:{port}"\n'
        f'root-certificates = "{secrets / "ca.pem"}"\n'
    )
    deployment = Deployment(start_process, tmp_path, port)
    deployment.superlink(service("superlink"), deployment.contained("superlink"))
    for node in range(NODES):
        flwr("supernode", "register", str(secrets / f"node-{node}.pub"), "secure", cwd=tmp_path)
        name = f"supernode-{node}"
        deployment.supernode(node, service(name), deployment.contained(name))
    said = refused(deployment, "unregistered", secrets / "unknown", secrets / "ca.pem")
    assert "Failed to activate SuperNode" in said
    said = refused(deployment, "strange", secrets / "unknown", other / "ca.pem")
    assert "certificate verify failed" in said

    out = tmp_path / "run"
    settings = {key.replace("_", "-"): value for key, value in OPTIONS.items()}
    own = {"options": "sync=replay", "out": str(out), "checkpoint-every": 1}
    given = run_config({**settings, **own})
    command = start_process(
        program("flwr"), "run", ".", "secure", "--stream", "--run-config", given,
        name="flwr-run", cwd=REPOSITORY,
    )  # fmt: skip

    # Round 2 is that of clients 0 and 2, and waits for client 0, whose messages nobody answers.
    # Meanwhile client 1 is started again: the files it kept are all that is left of it.
    wait_for("round 1", lambda: rounds(out) >= 1 or command.poll() is not None)
    deployment.running["node-0"].send_signal(signal.SIGSTOP)
    deployment.running["node-1"].send_signal(signal.SIGTERM)
    deployment.running["node-1"].wait(timeout=PATIENCE_S)
    deployment.supernode(
        1, unit_command("sfl-supernode@.service", "1"), deployment.installed("node-1")
    )
    deployment.running["node-0"].send_signal(signal.SIGCONT)
    wait_for("round 3", lambda: rounds(out) >= 3 or command.poll() is not None)
    inline = simulate(backend="inline", **OPTIONS, sync="replay")
    deployed = RunDirectory(out).history[:4]
    assert [record.digest for record in deployed] == [r.digest for r in inline.history[:4]]
    # In round 3 client 1 was sent no more than the scalars of round 2, and stands where all do.
    down = [past[3].bytes_down - past[2].bytes_down for past in (deployed, inline.history)]
    assert down[0] - down[1] < CLIENT_HALF_BYTES
    (file,) = (tmp_path / "state" / "node-1").glob("sfl_flower/run-*/replica-*")
    assert file.name.split("-")[1] == inline.history[2].digest

    # The SuperLink goes with all that it started, and comes back with its database.
    kill_tree(deployment.running["superlink"])
    command.wait(timeout=PATIENCE_S)
    deployment.superlink(unit_command("sfl-superlink.service"), deployment.installed("superlink"))
    flwr("run", ".", "secure", "--stream", "--run-config", f"{given} resume=true", cwd=REPOSITORY)
    assert "finished:completed" in statuses("secure", cwd=REPOSITORY)
    assert all(deployment.running[f"node-{node}"].poll() is None for node in range(NODES))
    assert_same_run(RunDirectory(out), inline)
