"""HO-SFL on a SuperLink and two SuperNodes: missed rounds, a restart, the same bits as inline."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from sfl_flower import load_task, simulate
from sfl_flower.data import model_seed
from sfl_flower.report import RunDirectory
from sfl_flower.zo import Journal, ParameterVector, Replica
from tests.deployment.federation import (
    PATIENCE_S,
    REPOSITORY,
    Federation,
    program,
    run_config,
    statuses,
    wait_for,
)
from tests.deployment.runs import assert_same_run, rounds

pytestmark = pytest.mark.deployment

# The seed whose cohorts of one are client 0, 1, 1, 0, 1.
OPTIONS: dict[str, Any] = {
    "task": "digits",
    "method": "ho_sfl",
    "rounds": 5,
    "clients": 2,
    "sampled": 1,
    "batch_size": 8,
    "seed": 83,
    "partition": "iid",
}
OWN: dict[str, Any] = {"minibatches": 2, "client_optimizer": "momentum", "sync": "replay"}

CLIENT_SIZE = 520
"""Parameters of the client half."""


def test_a_client_that_missed_rounds_catches_up(
    tmp_path: Path,
    flwr_home: Path,
    start_process: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    out = tmp_path / "run"
    federation = Federation(start_process, flwr_home, tmp_path, clients=2)
    federation.superlink()
    federation.supernode(0, SFL_STATE_LIMIT="0")  # its state is in files, that of the other
    federation.supernode(1)  # in Flower's context
    settings = {key.replace("_", "-"): value for key, value in OPTIONS.items()}
    settings["options"] = " ".join(f"{key}={value}" for key, value in OWN.items())
    command = start_process(
        program("flwr"), "run", ".", "localhost", "--stream",
        "--run-config", run_config({**settings, "out": str(out)}),
        name="flwr-run", cwd=REPOSITORY,
    )  # fmt: skip

    # Client 0 missed rounds 2 and 3 when round 4 asks for it. Meanwhile client 1 is stopped and
    # started again, with nothing of what it knew; client 0 is held so that it is back in round 5.
    wait_for("round 3", lambda: rounds(out) >= 3 or command.poll() is not None)
    federation.nodes[0].send_signal(signal.SIGSTOP)
    federation.stop(1)
    federation.supernode(1, warm=True, SFL_STATE_LIMIT="0")
    federation.nodes[0].send_signal(signal.SIGCONT)
    command.wait(timeout=PATIENCE_S)
    assert statuses("localhost", cwd=REPOSITORY) == ["finished:completed"]

    inline = simulate(backend="inline", **OPTIONS, **OWN)
    found = RunDirectory(out)
    assert_same_run(found, inline)
    assert_journal(found)
    # Whoever is asked says so if it is not at the server's digest; nobody had to.
    assert all(r.replies == 1 and not r.failures and not r.notes for r in found.history[1:])
    # One download each, as inline, and one after the restart: weights and momentum. Everybody
    # else replayed.
    down = [ledger["weights"]["down"] for ledger in (inline.summary.ledger, found_bytes(found))]
    assert down[1] == down[0] + 2 * 4 * CLIENT_SIZE
    assert_stands(federation.state_dir(0), found, version=3)
    assert_stands(federation.state_dir(1), found, version=4)


def found_bytes(found: RunDirectory) -> dict[str, dict[str, int]]:
    """Return the bytes of a run by category."""
    return dict(json.loads((found.path / "ledger.json").read_text(encoding="utf-8"))["bytes"])


def replica_at(found: RunDirectory, version: int) -> Replica:
    """Replay the run's journal from the initial weights."""
    journal = Journal.decode((found.path / "journal.bin").read_bytes(), "The run's journal")
    half = load_task("digits").build(model_seed(OPTIONS["seed"])).client
    vector = ParameterVector(half)
    replica = Replica.initial(vector.anchor, journal.header, vector.shapes)
    for entry in journal.entries[:version]:
        replica.apply(entry)
    return replica


def assert_journal(found: RunDirectory) -> None:
    """The journal rebuilds the client half of the model, and its digests are the history's."""
    last = found.history[-1]
    replica = replica_at(found, last.version)
    assert (replica.version, replica.digest.hex()) == (5, last.digest)
    half = load_task("digits").build(model_seed(OPTIONS["seed"])).client
    vector = ParameterVector(half)
    vector.load(replica.theta)
    model = found.load_model()
    assert all(torch.equal(value, model[name]) for name, value in half.state_dict().items())


def assert_stands(directory: Path, found: RunDirectory, version: int) -> None:
    """A client's own file holds the server's parameters and digest of this version."""
    (file,) = directory.glob("*/replica-*.safetensors")
    digest = found.history[version].digest
    assert file.name.split("-")[1] == digest
    expected = replica_at(found, version)
    assert expected.digest.hex() == digest
    kept = load_file(file)
    assert kept["theta"].tobytes() == expected.theta.numpy().tobytes()
