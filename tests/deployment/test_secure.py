"""TLS and authenticated SuperNodes, as docs/launching.md has them: one trains, one is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sfl_flower.report import RunDirectory
from tests.deployment.federation import (
    HTTP,
    PATIENCE_S,
    REPOSITORY,
    flwr,
    free_ports,
    listening,
    program,
    run_config,
    statuses,
    wait_for,
)

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not HTTP, reason="these options are those of Flower 1.36 and later"),
    pytest.mark.skipif(
        not (shutil.which("openssl") and shutil.which("ssh-keygen")),
        reason="needs the programs openssl and ssh-keygen",
    ),
]

CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
REFUSED = 305
"""Exit code of a SuperNode whose key is not registered, before it is cut to one byte."""


def make(directory: Path, *command: str) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def certificates(directory: Path) -> None:
    """Make an authority, the certificate of the SuperLink, and a key for each of two nodes."""
    make(directory, "openssl", "req", "-x509", *CURVE, "-days", "2", "-subj", "/CN=my CA",
         "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    make(directory, "openssl", "req", *CURVE, "-subj", "/CN=superlink",
         "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    (directory / "names.txt").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    make(directory, "openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey",
         "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names.txt",
         "-out", "server.pem")  # fmt: skip
    for node in ("known", "unknown"):
        make(directory, "ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", node)


def test_c12_an_authenticated_node_trains_over_tls_and_an_unregistered_one_is_refused(
    tmp_path: Path,
    flwr_home: Path,
    start_process: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    certificates(tmp_path)
    fleet, *ports = free_ports(3)
    (flwr_home / "config.toml").write_text(
        f'[superlink.secure]\naddress = "127.0.0.1:{fleet}"\n'
        f'root-certificates = "{tmp_path / "ca.pem"}"\n'
    )
    start_process(
        program("flower-superlink"), "--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem",
        "--ssl-keyfile", "server.key", "--enable-supernode-auth",
        "--host", "127.0.0.1", "--port", str(fleet), name="superlink", cwd=tmp_path,
    )  # fmt: skip
    wait_for("the SuperLink", lambda: listening(fleet))
    flwr("supernode", "register", str(tmp_path / "known.pub"), "secure", cwd=REPOSITORY)
    nodes = {
        name: start_process(
            program("flower-supernode"), "--root-certificates", "ca.pem",
            "--superlink", f"127.0.0.1:{fleet}", "--auth-supernode-private-key", name,
            "--host", "127.0.0.1", "--port", str(port),
            "--node-config", "partition-id=0 num-partitions=1", name=name, cwd=tmp_path,
            env={**os.environ, "SFL_STATE_DIR": str(tmp_path / "state")},
        )
        for name, port in zip(("known", "unknown"), ports, strict=True)
    }  # fmt: skip
    assert nodes["unknown"].wait(timeout=PATIENCE_S) != 0
    assert f"Exit Code: {REFUSED}" in (tmp_path / "unknown.log").read_text()
    settings = {"task": "digits", "method": "frozen", "rounds": 1, "clients": 1, "batch-size": 8}
    out = tmp_path / "run"
    flwr(
        "run", ".", "secure", "--stream",
        "--run-config", run_config({**settings, "out": str(out)}), cwd=REPOSITORY,
    )  # fmt: skip
    assert statuses("secure", cwd=REPOSITORY) == ["finished:completed"]
    assert [record.replies for record in RunDirectory(out).history] == [0, 1]
    assert nodes["known"].poll() is None
