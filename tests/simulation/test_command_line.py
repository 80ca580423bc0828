"""The app in this repository, started as a user does: `flwr run .`, or `flower-simulation`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sfl_flower import simulate
from sfl_flower.report import RunDirectory
from tests.deployment.federation import (
    FLOWER,
    REPOSITORY,
    flower_simulation,
    flwr,
    run_config,
    statuses,
)

pytestmark = pytest.mark.simulation

OPTIONS: dict[str, Any] = {"task": "digits", "method": "splitfed_v2", "rounds": 2, "seed": 4}
CLIENTS = 3


def settings(out: Path) -> str:
    return run_config({**OPTIONS, "out": str(out), "options": "local-steps=2 client-lr=0.03"})


def assert_same_as_inline(out: Path) -> None:
    expected = simulate(backend="inline", clients=CLIENTS, local_steps=2, client_lr=0.03, **OPTIONS)
    found = RunDirectory(out)
    assert [replace(record, seconds=0.0) for record in found.history] == [
        replace(record, seconds=0.0) for record in expected.history
    ]
    model = found.load_model()
    assert all(torch.equal(model[name], value) for name, value in expected.model.items())


@pytest.mark.skipif(FLOWER < (1, 36), reason="an older Flower has flower-simulation instead")
def test_flwr_run(managed_superlink: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flwr(
        "run", ".", "--stream",
        "--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1",
        "--run-config", settings(out),
        cwd=REPOSITORY,
    )  # fmt: skip
    # The exit status of `flwr run --stream` says nothing about the run.
    assert statuses(cwd=REPOSITORY) == ["finished:completed"]
    assert_same_as_inline(out)
    # No second torch: what the run needs is in the environment that it was started from.
    assert not list(managed_superlink.rglob("site-packages/torch*"))


@pytest.mark.skipif(FLOWER < (1, 36), reason="an older Flower has flower-simulation instead")
def test_flwr_run_of_a_method_of_ones_own(managed_superlink: Path, tmp_path: Path) -> None:
    example, out = REPOSITORY / "examples" / "own_method", tmp_path / "run"
    flwr(
        "run", ".", "--stream",
        "--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1",
        "--run-config", run_config({"rounds": 2, "out": str(out)}),
        cwd=example,
    )  # fmt: skip
    assert statuses(cwd=example) == ["finished:completed"]
    found = RunDirectory(out)
    assert found.config["method"] == "sign_sfl"
    assert [record.replies for record in found.history] == [0, CLIENTS, CLIENTS]
    assert (out / "journal.bin").exists()


@pytest.mark.skipif(FLOWER >= (1, 27), reason="only Flower up to 1.26 has the command")
def test_flower_simulation(flwr_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flower_simulation(REPOSITORY, CLIENTS, settings(out))
    assert_same_as_inline(out)
