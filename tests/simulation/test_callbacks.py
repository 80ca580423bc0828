"""Callbacks do the same on Ray, in this process, and in an app that Flower starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from sfl_flower import make_client_app, make_server_app, simulate
from sfl_flower.callbacks import Callback, CSVLogger, EarlyStopping
from sfl_flower.errors import ConfigError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.run.inline import InlineGrid
from sfl_flower.tasks import load_task
from sfl_flower.wire.flower import SUPERLINK, identity
from tests.deployment.federation import FLOWER, REPOSITORY, flwr, run_config, statuses

SETTINGS: dict[str, Any] = {"clients": 3, "rounds": 8, "eval_every": 1, "partition": "iid"}
WAIT = "early_stopping:accuracy,patience=1,min-delta=0.9"
"""No accuracy is 0.9 better than the first: the run ends with round 1."""


class Third(Callback):
    """Ends a run with round 3."""

    def stop(self, record: RoundRecord) -> str | None:
        return "three are enough" if record.round == 3 else None


def untimed(records: Any) -> list[RoundRecord]:
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.simulation
def test_ray_equals_inline(tmp_path: Path) -> None:
    found = {}
    for backend in ("ray", "inline"):
        out = tmp_path / backend
        callbacks = [Third(), CSVLogger(tmp_path / f"{backend}.csv")]
        result = simulate(
            "digits", "frozen", backend=backend, out=out, callbacks=callbacks, **SETTINGS
        )
        lines = (tmp_path / f"{backend}.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in lines] == ["round", "0", "1", "2", "3"]
        found[backend] = result
    ray, inline = found["ray"], found["inline"]
    assert untimed(ray.history) == untimed(inline.history)
    assert ray.history[-1].notes == ("Third: three are enough, so this round is the last.",)
    assert all(torch.equal(ray.model[name], value) for name, value in inline.model.items())


def serve(out: Path, own: tuple[Callback, ...], **config: Any) -> RunDirectory:
    """Run a server app on this process's grid, with a run configuration."""
    task = load_task("digits")
    server = make_server_app(task, callbacks=own)
    given = {key.replace("_", "-"): value for key, value in SETTINGS.items()}
    context = Context(
        run_id=1,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={**given, "method": "frozen", "out": str(out), **config},
    )
    with identity(1, SUPERLINK):
        server(InlineGrid(make_client_app(lambda _: task), SETTINGS["clients"]), context)
    return RunDirectory(out)


@pytest.mark.flower
def test_an_app_has_callbacks_of_its_own_and_of_its_run_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    served = serve(tmp_path / "own", (Third(),), callbacks="csv best_checkpoint:mode=max")
    assert [record.round for record in served.history] == [0, 1, 2, 3]
    assert len((tmp_path / "own" / "history.csv").read_text().splitlines()) == 5
    assert (tmp_path / "own" / "best.safetensors").exists()
    named = serve(tmp_path / "named", (), callbacks=WAIT)
    expected = simulate(
        "digits",
        "frozen",
        backend="inline",
        callbacks=[EarlyStopping("accuracy", patience=1, min_delta=0.9)],
        **SETTINGS,
    )
    assert untimed(named.history) == untimed(expected.history)
    assert len(named.history) == 2


@pytest.mark.flower
@pytest.mark.parametrize(
    ("text", "said"), [("early", "Unknown callback 'early'"), ("csv:'a", "No closing quotation")]
)
def test_a_run_configuration_with_a_wrong_callback(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        serve(tmp_path / "run", (), callbacks=text)
    assert not (tmp_path / "run").exists()


@pytest.mark.simulation
@pytest.mark.skipif(FLOWER < (1, 36), reason="an older Flower has flower-simulation instead")
def test_flwr_run_with_callbacks(managed_superlink: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {"rounds": 8, "eval-every": 1, "partition": "iid", "method": "frozen"}
    flwr(
        "run", ".", "--stream",
        "--federation-config", "num-supernodes=3 client-resources-num-cpus=1",
        "--run-config", run_config({**settings, "out": str(out), "callbacks": f"csv {WAIT}"}),
        cwd=REPOSITORY,
    )  # fmt: skip
    assert statuses(cwd=REPOSITORY) == ["finished:completed"]
    expected = simulate(
        "digits",
        "frozen",
        backend="inline",
        callbacks=[EarlyStopping("accuracy", patience=1, min_delta=0.9)],
        **SETTINGS,
    )
    assert untimed(RunDirectory(out).history) == untimed(expected.history)
    assert len((out / "history.csv").read_text().splitlines()) == 3
