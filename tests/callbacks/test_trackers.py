"""Trackers, with the real packages on this machine: a run that goes on has every round once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sfl_flower.callbacks import EarlyStopping, MLflow, Trackio, WandB
from sfl_flower.callbacks.tracker import Tracker
from sfl_flower.errors import ConfigError
from sfl_flower.report import RoundRecord
from tests.callbacks.scripted import run, says
from tests.tiny import Stop

pytestmark = pytest.mark.flower

ACCURACY = [0.1, 0.25, 0.5, 0.5, 0.5]
ENDED = (
    "The run is over. EarlyStopping: no better accuracy in 2 evaluations, the best is 0.5 in "
    "round 2."
)


def broken_off_and_resumed(
    trackers: tuple[Tracker, Tracker], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break a run off after round 2, resume it at round 1; it ends early with round 4."""
    says(monkeypatch, [*ACCURACY, 0.0, 0.0])

    def observer(record: RoundRecord) -> None:
        if record.round == 2:
            raise Stop

    stop = EarlyStopping("accuracy", patience=2)
    with pytest.raises(Stop):
        run([trackers[0], stop], out=out, rounds=6, observer=observer)
    run([trackers[1], stop], out=out, rounds=6, resume="previous")


def kept(out: Path) -> Any:
    return json.loads((out / "trackers.json").read_text())


def wandb_records(path: Path) -> Iterator[Any]:
    """Read the file of an offline run: a LevelDB log of protocol buffers behind 7 bytes."""
    pb: Any = import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
            at += 2**15 - at % 2**15
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            found = pb.Record()
            found.ParseFromString(whole)
            yield found
            whole = b""


def whole(path: Path) -> list[Any]:
    """Return the records of a run that was finished, once another process has written them all."""
    for _ in range(300):
        found = list(wandb_records(path))
        if any(each.HasField("exit") for each in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    made = WandB("mine", mode="offline"), WandB("mine", mode="offline")
    broken_off_and_resumed(made, out, monkeypatch)
    files = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    parts = [whole(path) for path in files]
    assert len(parts) == 2
    told = [r.run for part in parts for r in part if r.WhichOneof("record_type") == "run"]
    assert {(each.run_id, each.project) for each in told} == {(kept(out)["wandb"]["id"], "mine")}
    rounds = {}
    for record in (r.history for part in parts for r in part if r.HasField("history")):
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.item}
        assert record.step.num not in rounds
        rounds[record.step.num] = float(items["eval/accuracy"])
    assert rounds == dict(enumerate(ACCURACY))
    assert [r.exit.exit_code for part in parts for r in part if r.HasField("exit")] == [1, 0]
    said = [u.value_json for r in parts[1] if r.HasField("summary") for u in r.summary.update]
    assert json.dumps(ENDED) in said


def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    out, uri = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    broken_off_and_resumed((MLflow("mine", uri=uri), MLflow("mine", uri=uri)), out, monkeypatch)
    client: Any = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.info.run_id == kept(out)["mlflow"]["id"]
    assert (found.info.status, found.data.tags["ended"]) == ("FINISHED", ENDED)
    assert (found.data.params["rounds"], found.data.params["method"]) == ("6", "ho_sfl")
    points = client.get_metric_history(found.info.run_id, "eval/accuracy")
    assert [(point.step, point.value) for point in points] == list(enumerate(ACCURACY))


def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio: Any = pytest.importorskip("trackio")
    storage: Any = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    out = tmp_path / "run"
    broken_off_and_resumed((Trackio("mine"), Trackio("mine")), out, monkeypatch)
    (found,) = trackio.Api().runs("mine")
    assert found.name == kept(out)["trackio"]["id"]
    assert (found.config["rounds"], found.config["method"]) == (6, "ho_sfl")
    logs = storage.get_logs("mine", found.name)
    assert [(each["step"], each["eval/accuracy"]) for each in logs] == list(enumerate(ACCURACY))


class Told(Tracker):
    """A tracker that keeps everything in a list."""

    package = "json"  # is there

    def __init__(self) -> None:
        self.told: list[Any] = []

    def open(self, run: Any, known: str | None) -> str:
        self.told.append(("open", known))
        return known or "one"

    def log(self, numbers: Any, round: int) -> None:
        self.told.append((round, numbers.get("eval/accuracy")))

    def close(self, why: str, failed: bool) -> None:
        self.told.append((why, failed))


def test_what_a_tracker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Told(), Told()
    broken_off_and_resumed((one, two), tmp_path / "run", monkeypatch)
    begun = [(0, 0.1), (1, 0.25), (2, 0.5)]
    assert one.told == [("open", None), *begun, ("Stop: ", True)]
    assert two.told == [("open", "one"), (3, 0.5), (4, 0.5), (ENDED, False)]
    three = Told()
    run([three], rounds=1)  # without a directory
    assert three.told[0] == ("open", None)
    assert three.told[-1] == ("Every round was run.", False)


def test_a_damaged_file_of_ids_is_refused(tmp_path: Path) -> None:
    run([Told()], out=tmp_path, rounds=1)
    (tmp_path / "trackers.json").write_text('{"json": {"id": "one"}}')
    with pytest.raises(ConfigError, match=r"trackers\.json is damaged: it says which runs"):
        run([Told()], out=tmp_path, rounds=2, resume=True)


def test_the_packages_are_not_loaded_until_they_are_used() -> None:
    code = "import sys, sfl_flower.callbacks; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"wandb", "mlflow", "trackio", "tensorboard"} & set(found.stdout.split())
