"""A SuperLink and SuperNodes on localhost, and Flower's command line, in both dialects."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FLOWER = tuple(int(part) for part in version("flwr").split(".")[:2])
HTTP = FLOWER >= (1, 36)
"""Whether SuperLink and SuperNodes speak HTTP, and on one port each."""
PATIENCE_S = 600.0


def program(name: str) -> str:
    """Return the path of a program of the environment that runs the tests."""
    return str(Path(sys.executable).parent / name)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for(what: str, ready: Callable[[], bool], patience: float = PATIENCE_S) -> None:
    """Wait until something holds; fail with its name if it does not."""
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience:g} s for: {what}")
        time.sleep(0.1)


def listening(port: int) -> bool:
    """Return whether somebody accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def flwr(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run `flwr` and return what it prints; it must exit with 0."""
    done = subprocess.run(
        [program("flwr"), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    print(done.stdout[-6000:], done.stderr[-6000:])  # pytest shows it for a failed test
    assert done.returncode == 0, done.stderr
    return done.stdout


def flower_simulation(app: Path, clients: int, settings: str) -> None:
    """Run an app by the command of Flower 1.26; it must exit with 0."""
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"include_dashboard": False},
    }
    done = subprocess.run(
        [
            program("flower-simulation"), "--app", ".", "--num-supernodes", str(clients),
            "--backend-config", json.dumps(backend), "--run-config", settings,
        ],
        cwd=app, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-6000:])
    assert done.returncode == 0


def statuses(*superlink: str, cwd: Path, **environment: str) -> list[str]:
    """Return the status of every run that a SuperLink knows."""
    out = flwr("ls", *superlink, "--format", "json", cwd=cwd, **environment)
    return [run["status"] for run in json.loads(out)["runs"]]


def run_config(values: Mapping[str, Any]) -> str:
    """Write a run configuration as the command line takes it."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


@dataclass
class Federation:
    """A SuperLink, and SuperNodes by partition.

    Attributes
    ----------
    start : callable
        The `start_process` fixture.
    home : Path
        Flower's home, where the connection is configured as ``localhost``.
    directory : Path
        Where logs and state go.
    clients : int
        Number of partitions.
    """

    start: Callable[..., subprocess.Popen[str]]
    home: Path
    directory: Path
    clients: int
    nodes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    fleet: int = 0

    def superlink(self) -> None:
        """Start the SuperLink and wait for it."""
        ports = free_ports(3)
        if HTTP:
            options = ["--host", "127.0.0.1", "--port", str(ports[0])]
            self.fleet = control = ports[0]
        else:
            names = ("--serverappio-api-address", "--fleet-api-address", "--control-api-address")
            options = [
                part
                for name, port in zip(names, ports, strict=True)
                for part in (name, f"127.0.0.1:{port}")
            ]
            self.fleet, control = ports[1:]
        (self.home / "config.toml").write_text(
            f'[superlink.localhost]\naddress = "127.0.0.1:{control}"\ninsecure = true\n'
        )
        self.start(program("flower-superlink"), "--insecure", *options, name="superlink")
        wait_for("the SuperLink", lambda: listening(self.fleet) and listening(control))

    def state_dir(self, partition: int) -> Path:
        """Return the directory of a node's large state."""
        return self.directory / f"state-{partition}"

    def supernode(self, partition: int, *, warm: bool = False, **environment: str) -> None:
        """Start the SuperNode of a partition, again perhaps, by `sfl warm` or not; wait for it."""
        (port,) = free_ports(1)
        address = (
            ["--host", "127.0.0.1", "--port", str(port)]
            if HTTP
            else ["--clientappio-api-address", f"127.0.0.1:{port}"]
        )
        self.nodes[partition] = self.start(
            *([sys.executable, "-P", "-m", "sfl_flower.run.warm"] if warm else []),
            program("flower-supernode"),
            "--insecure",
            "--superlink",
            f"127.0.0.1:{self.fleet}",
            *address,
            "--node-config",
            f"partition-id={partition} num-partitions={self.clients}",
            name=f"supernode-{partition}",
            env={**os.environ, "SFL_STATE_DIR": str(self.state_dir(partition)), **environment},
        )
        wait_for(f"SuperNode {partition}", lambda: listening(port))

    def stop(self, partition: int) -> None:
        """Stop a SuperNode as a person would, and wait until it is gone."""
        node = self.nodes.pop(partition)
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=60)
