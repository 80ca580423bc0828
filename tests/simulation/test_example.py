"""The example app: what its `pyproject.toml` names exists, and trains with what it declares."""

from __future__ import annotations

import builtins
import shutil
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from sfl_flower.report import RunDirectory
from sfl_flower.run.inline import InlineGrid
from sfl_flower.wire.flower import SUPERLINK, identity
from tests.hub import hub_offences

pytestmark = pytest.mark.flower

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE = EXAMPLES / "own_task"


def load(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(import_module(module), name)


def test_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    (entry,) = project["tool"]["uv"]["dependency-metadata"]
    assert (entry["name"], entry["requires-dist"]) == (project["project"]["name"], [])
    app = project["tool"]["flwr"]["app"]
    server, client = (load(app["components"][name]) for name in ("serverapp", "clientapp"))
    run_config = {**app["config"], "out": str(tmp_path / "run")}
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    with identity(1, SUPERLINK):
        server(InlineGrid(client, 3), context)
    found = RunDirectory(tmp_path / "run")
    assert found.config["task"] == "breast_cancer"
    assert found.config["clients"] == 3
    _, accuracy = found.history.series(metric="accuracy")
    assert accuracy[-1] > 0.85 > accuracy[0]


@pytest.mark.parametrize("name", ["own_task", "own_method", "sensors"])
def test_an_example_may_be_published(tmp_path: Path, name: str) -> None:
    """From a folder of the project's name: the Hub wants one without an underscore."""
    app = tmp_path / name.replace("_", "-")
    shutil.copytree(EXAMPLES / name, app, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    assert hub_offences(app) == []


def test_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES / "sensors"
    monkeypatch.syspath_prepend(str(example))
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    app = tomllib.loads((example / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    server, client = (load(app["components"][name]) for name in ("serverapp", "clientapp"))
    run_config = {**app["config"], "rounds": 30, "out": str(tmp_path / "run")}
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    with identity(1, SUPERLINK):
        server(InlineGrid(client, 4), context)
    _, accuracy = RunDirectory(tmp_path / "run").history.series(metric="accuracy")
    assert accuracy[-1] > 0.4 > accuracy[0]  # four conditions in equal shares, other machines

    machine = import_module("sensors.data").machine
    first, again, other = machine(3, 8), machine(3, 8), machine(4, 8)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
    assert first.x.shape == (8, 1, 128) and first.y.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a16_the_data_load_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client is a new process with every message, and pays for every import each time."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    really = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        assert name.split(".")[0] not in ("sklearn", "scipy", "pandas"), name
        return really(name, *rest, **more)

    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("own_task", "own_task.task"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    module = import_module("own_task.task")
    found = module.table()
    monkeypatch.undo()
    assert torch.equal(found[0], torch.from_numpy(x).float())
    assert torch.equal(found[1], torch.from_numpy(y))
    assert len(module.task.samples("train")) + len(module.task.samples("test")) == len(y)


def test_b2_own_method_keeps_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES / "own_method"
    monkeypatch.syspath_prepend(str(example))
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    app = tomllib.loads((example / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    server, client = (load(app["components"][name]) for name in ("serverapp", "clientapp"))
    run_config = {**app["config"], "rounds": 40, "out": str(tmp_path / "run")}
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    with identity(1, SUPERLINK):
        server(InlineGrid(client, 3), context)
    found = RunDirectory(tmp_path / "run")
    assert found.config["method"] == "sign_sfl"
    _, accuracy = found.history.series(metric="accuracy")
    assert accuracy[-1] > accuracy[0] + 0.3
    assert (tmp_path / "run" / "journal.bin").exists()
