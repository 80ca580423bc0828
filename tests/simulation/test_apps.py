"""Apps of `sfl new` and of `examples`, started as a user does: `flwr run .`, in short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfl_flower.cli.new import TEMPLATES, write_app
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

QUICKSTART = REPOSITORY / "examples" / "from_quickstart"
CLIENTS, ROUNDS = 2, 1


def assert_trained(out: Path, task: str) -> None:
    found = RunDirectory(out)
    assert (found.config["task"], found.config["method"]) == (task, "ho_sfl")
    assert [record.replies for record in found.history] == [0, *[CLIENTS] * ROUNDS]
    assert found.history[-1].version == ROUNDS  # the clients' half has been stepped along


@pytest.mark.skipif(FLOWER < (1, 36), reason="an older Flower has flower-simulation instead")
def test_flwr_run_of_the_templates(managed_superlink: Path, tmp_path: Path) -> None:
    # That of a deployment runs in one (`tests/deployment/test_new_app.py`).
    templates = [template for template in TEMPLATES if template != "deployment"]
    for template in templates:
        app, out = write_app(f"app-{template}", template, tmp_path), tmp_path / "runs" / template
        flwr(
            "run", ".", "--stream",
            "--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1",
            "--run-config", run_config({"rounds": ROUNDS, "out": str(out)}),
            cwd=app,
        )  # fmt: skip
        assert_trained(out, f"app_{template}")
    assert statuses(cwd=tmp_path) == ["finished:completed"] * len(templates)
    # No second torch: what the apps need is in the environment that they were started from.
    assert not list(managed_superlink.rglob("site-packages/torch*"))


@pytest.mark.skipif(FLOWER < (1, 36), reason="an older Flower has flower-simulation instead")
def test_flwr_run_of_a_quickstart_before_and_after(
    managed_superlink: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for which in ("before", "after"):
        shown = flwr(
            "run", ".", "--stream",
            "--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1",
            "--run-config", run_config({"num-server-rounds": ROUNDS}),
            cwd=QUICKSTART / which,
        )  # fmt: skip
        assert "Accuracy: 0." in shown + capfd.readouterr().out
    assert statuses(cwd=QUICKSTART) == ["finished:completed"] * 2
    assert not list(managed_superlink.rglob("site-packages/torch*"))


@pytest.mark.skipif(FLOWER >= (1, 27), reason="only Flower up to 1.26 has the command")
def test_flower_simulation_of_a_quickstart(flwr_home: Path) -> None:
    flower_simulation(QUICKSTART / "after", CLIENTS, run_config({"num-server-rounds": ROUNDS}))


@pytest.mark.skipif(FLOWER >= (1, 27), reason="only Flower up to 1.26 has the command")
def test_flower_simulation_of_a_template(flwr_home: Path, tmp_path: Path) -> None:
    app, out = write_app("flower-shop", "table", tmp_path), tmp_path / "run"
    flower_simulation(app, CLIENTS, run_config({"rounds": ROUNDS, "out": str(out)}))
    assert_trained(out, "flower_shop")
