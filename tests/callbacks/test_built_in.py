"""The callbacks that come with the package, and texts that describe them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sfl_flower.callbacks import (
    CALLBACKS,
    BestCheckpoint,
    Budget,
    Callback,
    CSVLogger,
    EarlyStopping,
    MLflow,
    TensorBoard,
    Trackio,
    WandB,
    read_callbacks,
)
from sfl_flower.errors import ConfigError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.report.tensors import load_tensors
from tests.callbacks.scripted import record, run, says, view
from tests.tiny import Stop, equal

pytestmark = pytest.mark.flower


def ends(callback: Callback, records: Sequence[RoundRecord]) -> tuple[int, str]:
    """Return the round in which a callback ends a run of these records, and why; -1 for none."""
    callback.on_begin(view())
    for each in records:
        if why := callback.stop(each):
            return each.round, why
    return -1, ""


@pytest.mark.parametrize(
    ("own", "values", "at"),
    [
        ({"patience": 1}, [0.1, 0.2, 0.2, 0.9], 2),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.5], 4),
        ({"patience": 3}, [0.5, 0.4, 0.4], -1),
        ({"patience": 2, "min_delta": 0.25}, [0.0, 0.25, 0.5, 0.75, 0.75], 4),
        ({"patience": 2, "mode": "min"}, [0.5, 0.4, 0.6, 0.4], 3),
        ({"patience": 2}, [math.nan, math.nan], 1),
        ({"patience": 2}, [0.5, math.inf, math.nan], 2),
        ({"patience": 2}, [0.5, None, 0.4, None, 0.4], 4),
    ],
)
def test_early_stopping_waits_for_a_better_value(
    own: dict[str, Any], values: list[float | None], at: int
) -> None:
    records = [record(number, value) for number, value in enumerate(values)]
    stop = EarlyStopping("accuracy", **own)
    assert ends(stop, records)[0] == at
    assert ends(stop, records)[0] == at  # another run with the same callback begins afresh


def test_less_is_better_of_a_loss() -> None:
    def records(name: str) -> list[RoundRecord]:
        return [RoundRecord(n, 0, 0, 0.0, None, {name: v}) for n, v in enumerate([3.0, 2.0, 1.0])]

    for name in ("loss", "validation_loss"):
        assert ends(EarlyStopping(name, patience=1), records(name)) == (-1, "")
    assert ends(EarlyStopping("score", patience=1), records("score"))[0] == 1


def test_a_budget_ends_before_the_round_that_would_exceed_it() -> None:
    """Rounds of 40 and then 60 bytes: 160 so far, and another 60 would be 220."""
    size = [0, 40, 100, 160, 220]
    records = [
        RoundRecord(n, 0, 0, 2.0 * n, bytes_up=up - 30 * (n > 0), bytes_down=30 * (n > 0))
        for n, up in enumerate(size)
    ]
    assert ends(Budget(bytes=220), records) == (4, ends(Budget(bytes=220), records)[1])
    at, why = ends(Budget(bytes=219), records)
    assert (at, why) == (3, "another 60 B to the 160 B so far would exceed 219 B")
    assert ends(Budget(seconds=6.0), records)[0] == 3
    at, why = ends(Budget(seconds=5.9), records)
    assert (at, why) == (2, "another 2 s to the 4 s so far would exceed 5.9 s")


def test_a_budget_of_a_run_is_kept(tmp_path: Path) -> None:
    plain = run(rounds=6)
    costs = [r.bytes_up + r.bytes_down for r in plain.history]
    steady = costs[3] - costs[2]
    assert costs[5] - costs[4] == steady
    budget = costs[3] + steady + steady // 2  # three rounds and one and a half

    def observer(record: RoundRecord) -> None:
        if record.round == 2:
            raise Stop

    with pytest.raises(Stop):
        run([Budget(budget)], out=tmp_path, rounds=6, observer=observer)
    parts = run([Budget(budget)], out=tmp_path, rounds=6, resume=True)
    whole = run([Budget(budget)], rounds=6)
    assert len(whole.history) - 1 == 4
    assert costs[4] <= budget < costs[5]
    assert len(parts.history) - 1 in (3, 4)  # clients join anew, which costs bytes as well
    assert parts.history[-1].bytes_up + parts.history[-1].bytes_down <= budget


@pytest.mark.parametrize(
    ("given", "bytes"), [("64MiB", 2**26), ("1.5 KiB", 1536), ("2GiB", 2**31), (7, 7), ("8B", 8)]
)
def test_bytes_of_a_budget(given: Any, bytes: int) -> None:
    assert Budget(given).bytes == bytes


@pytest.mark.parametrize("given", ["64MB", "-1", True, "1e6", ""])
def test_bytes_that_are_none(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"it must be a number of bytes from 0|has no limit"):
        Budget(given)


def best(path: Path) -> tuple[str, str, str]:
    with safe_open(path / "best.safetensors", framework="pt") as file:
        about = file.metadata()
    return about["metric"], about["value"], about["round"]


def test_the_best_model_is_kept_beside_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, [0.1, 0.5, 0.75, 0.75, math.nan, 0.2])
    run([BestCheckpoint("accuracy")], out=tmp_path / "run", rounds=5)
    assert best(tmp_path / "run") == ("accuracy", "0.75", "2")
    found = load_tensors(tmp_path / "run" / "best.safetensors", "the best model")[0]
    assert equal(found, run(rounds=2).model)
    assert equal(RunDirectory(tmp_path / "run").load_model(), run(rounds=5).model)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_resumed_run_keeps_the_best_model_of_a_whole_one(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in a round that is better, before its model was kept or after that."""
    says(monkeypatch, [0.1, 0.5, 0.3, 0.75, 0.6, 0.7])

    class Killed(Callback):
        def on_evaluation(self, record: RoundRecord) -> None:
            if record.round == 3:
                raise KeyboardInterrupt

    callbacks: list[Callback] = [BestCheckpoint("accuracy")]
    callbacks.insert(0 if killed == "before" else 1, Killed())
    with pytest.raises(KeyboardInterrupt):
        run(callbacks, out=tmp_path / "parts", rounds=5)
    assert best(tmp_path / "parts")[2] == ("1" if killed == "before" else "3")
    run([BestCheckpoint("accuracy")], out=tmp_path / "parts", rounds=5, resume=True)
    run([BestCheckpoint("accuracy")], out=tmp_path / "whole", rounds=5)
    file = "best.safetensors"
    assert best(tmp_path / "whole") == ("accuracy", "0.75", "3")
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_damaged_best_model_is_no_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, [0.1, 0.5, 0.4, 0.3])
    run([BestCheckpoint("accuracy")], out=tmp_path / "run", rounds=1)
    (tmp_path / "run" / "best.safetensors").write_bytes(b"nothing")
    run([BestCheckpoint("accuracy")], out=tmp_path / "run", rounds=3, resume=True)
    assert best(tmp_path / "run") == ("accuracy", "0.5", "1")


def test_what_needs_a_place_says_so_before_anything_starts() -> None:
    for callback, text in (
        (BestCheckpoint(), "this run has none; give it one with out="),
        (CSVLogger(), "has neither a path nor a run directory"),
    ):
        with pytest.raises(ConfigError, match=text):
            run([callback])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_has_a_line_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, [0.1, 0.25, 0.5, 0.75])
    result = run([CSVLogger(tmp_path / "a.csv")], rounds=3, eval_every=2)
    found = rows(tmp_path / "a.csv")
    assert [row["round"] for row in found] == ["0", "1", "2", "3"]
    assert [row["eval/accuracy"] for row in found] == ["0.1", "", "0.5", "0.75"]
    assert found[0]["train/loss"] == ""
    assert float(found[3]["train/loss"]) == result.history[3].loss
    assert int(float(found[3]["bytes/up"])) == result.history[3].bytes_up


def test_a_resumed_csv_file_has_no_round_twice(tmp_path: Path) -> None:
    def observer(record: RoundRecord) -> None:
        if record.round == 3:
            raise Stop

    out = tmp_path / "run"
    with pytest.raises(Stop):
        run([CSVLogger()], out=out, rounds=4, observer=observer)
    run([CSVLogger()], out=out, rounds=4, resume="previous")
    assert [row["round"] for row in rows(out / "history.csv")] == ["0", "1", "2", "3", "4"]


def test_tensorboard_writes_where_it_is_told(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run([TensorBoard(tmp_path / "logs")], rounds=2)
    found = events.EventAccumulator(str(tmp_path / "logs")).Reload()
    points = [(point.step, point.value) for point in found.Scalars("progress/samples")]
    assert points == [(r.round, r.samples) for r in result.history]


@pytest.mark.parametrize(
    ("callback", "extra"),
    [
        (WandB(), "wandb"),
        (MLflow(), "mlflow"),
        (Trackio(), "trackio"),
        (TensorBoard("logs"), "tensorboard"),
    ],
)
def test_a_missing_package_is_refused_with_the_remedy(
    callback: Callback, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("sfl_flower.callbacks.packages.import_module", missing)
    with pytest.raises(ConfigError) as error:
        run([callback], out=tmp_path / "run")
    assert str(error.value) == (
        f"{extra} cannot be imported (No module named '{extra}'); install it with pip install "
        f"'sfl-flower[{extra}]'."
    )
    assert not (tmp_path / "run").exists()


def test_texts_describe_callbacks() -> None:
    texts = [
        "early_stopping:loss,3,min-delta=0.5",
        "budget:bytes=2KiB,seconds=60",
        "csv",
        "wandb:p",
    ]
    stop, budget, table, wandb = read_callbacks(texts)
    assert isinstance(stop, EarlyStopping) and isinstance(budget, Budget)
    assert (stop.metric, stop.patience, stop.min_delta, stop.mode) == ("loss", 3, 0.5, "auto")
    assert (budget.bytes, budget.seconds) == (2048, 60.0)
    assert isinstance(table, CSVLogger) and table.path == ""
    assert isinstance(wandb, WandB) and wandb.project == "p"


def test_a_text_may_name_a_callback_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_hooks.py").write_text(
        "from sfl_flower import Callback\nclass Mine(Callback): pass\nmade = Mine()\nnone = 3\n"
        "def broken(): raise OSError('no')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    one, two = read_callbacks(["own_hooks:Mine", "own_hooks:made"])
    assert type(one).__name__ == type(two).__name__ == "Mine"
    for text, said in (
        ("own_hooks:none", "is a int; it must be a sfl_flower.Callback"),
        ("own_hooks:Other", "cannot be imported"),
        ("no_hooks:Mine", "cannot be imported"),
        ("own_hooks:broken", r"cannot be made: OSError: no"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_callbacks([text])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("early_stoping", "Unknown callback 'early_stoping'.*Did you mean 'early_stopping'"),
        ("early_stopping:patience=x", "patience is 'x'; it must be a whole number"),
        ("early_stopping:patience=0", "patience is 0; it must be at least 1"),
        ("early_stopping:patiense=3", "Unknown parameter.*Did you mean 'patience'"),
        ("early_stopping:loss,metric=loss", "got metric twice"),
        ("early_stopping:patience=3,loss", "it takes values in the order metric, patience"),
        ("csv:a,b", "it takes values in the order path"),
        ("early_stopping:mode=up", "mode is 'up'; it must be one of auto, max, min"),
        ("tensorboard", "lacks path; write tensorboard:path=VALUE"),
        ("budget", "Budget has no limit"),
        ("wandb:mode=off", "mode is 'off'"),
        (":x", "Unknown callback"),
    ],
)
def test_texts_that_describe_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_callbacks([text])


def test_the_page_lists_every_one_with_its_parameters() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/callbacks.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)\(([\w, ]*)\)`", page, flags=re.MULTILINE)
    assert [(name, kind, names.split(", ")) for name, kind, names in listed] == [
        (name, kind.__name__, [field.name for field in fields(kind)])
        for name, kind in CALLBACKS.items()
    ]
