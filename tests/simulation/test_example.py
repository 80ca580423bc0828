"""The example app: what its `pyproject.toml` names exists, and trains with what it declares."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from sfl_flower.report import RunDirectory
from sfl_flower.run.inline import InlineGrid
from sfl_flower.wire.flower import SUPERLINK, identity

pytestmark = pytest.mark.flower

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_task"


def load(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(import_module(module), name)


def test_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []  # or Flower installs torch again
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
