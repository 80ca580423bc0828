"""Runs on int8 bases: what is trained moves and travels in float32, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord

from sfl_flower.data import model_seed
from sfl_flower.data.memory import forget
from sfl_flower.errors import DataError, TrainingError
from sfl_flower.report import RunDirectory
from sfl_flower.run.client_app import make_client_app
from sfl_flower.split import dequantised, travelling_state
from sfl_flower.split.parameters.quantised import is_quantised
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.zo import Journal, ParameterVector, Replica
from tests.server.test_trained import weight_arrays
from tests.tasks.language import checkpoint, write
from tests.tiny import Trial, begin, equal, run, start

SETTINGS: dict[str, Any] = {"rounds": 2, "clients": 2, "partition": "iid"}
METHODS = ("ho_sfl", "heron", "splitfed_v2", "frozen")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "opt")}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    rows = [("the film was great", 1), ("a dull plot", 0), ("it was not bad", 1), ("terrible", 0)]
    for name in ("sst2_train", "sst2_dev"):
        write(tmp_path / f"{name}.csv.gz", ("sentence", "label"), rows * 3)
    yield tmp_path


def small(model: str, base_dtype: str = "int8", **options: Any) -> SplitTask:
    return load_task(
        "sst2",
        model=model,
        **{"max_length": 8, "lora_rank": 2, "base_dtype": base_dtype, **options},
    )


def trained(trial: Trial) -> set[str]:
    halves = (trial.strategy.client_half, trial.strategy.server.module)
    return {n for half in halves for n, p in half.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["bert", "opt"])
@pytest.mark.parametrize("method", METHODS)
def test_only_float32_parameters_move_and_travel(
    kind: str, method: str, data: Path, models: dict[str, str]
) -> None:
    trial = begin(small(models[kind]), method, **SETTINGS)
    before = trial.model
    client = travelling_state(trial.strategy.client_half)
    assert {value.dtype for value in client.values()} == {torch.float32}
    assert any(is_quantised(p) for p in trial.strategy.client_half.parameters())
    after = start(trial).model
    assert trial.total("replies") and trial.notes == ""
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved <= trained(trial) and any("lora_" in name for name in moved)
    assert bool(moved & set(client)) == (method != "frozen")
    contents = [content for _, _, content in trial.grid.requests + trial.grid.replies]
    sizes = {
        sum(array.size for array in arrays.values())
        for arrays in map(weight_arrays, contents)
        if arrays
    }
    assert sizes <= {sum(value.numel() for value in client.values())}


@pytest.mark.parametrize("trained_as", ["subspace:2", "core:2"])
@pytest.mark.parametrize("base_dtype", ["int8", "bfloat16"])
def test_layers_of_a_small_base_move_in_a_subspace(
    base_dtype: str, trained_as: str, data: Path, models: dict[str, str]
) -> None:
    rows = [("the film was great and fun", 1), ("a dull plot", 0), ("it was not bad or", 1)]
    write(data / "sst2_train.csv.gz", ("sentence", "label"), rows * 30)
    task = small(models["bert"], base_dtype, lora_rank=0, trained=trained_as, train_size=12)
    task.check()
    trial = begin(task, "ho_sfl", **SETTINGS)
    half, server = trial.strategy.client_half, trial.strategy.server.module
    names = [n for n, p in half.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 6 and all(name.endswith(".subspace") for name in names)
    assert {p.dtype for p in (*half.parameters(), *server.parameters()) if p.requires_grad} == {
        torch.float32
    }
    assert any(is_quantised(p) or p.dtype == torch.bfloat16 for p in half.parameters())
    heads = {n.split(".")[-2] for n, p in server.named_parameters() if p.requires_grad}
    assert heads == {"dense", "classifier"}  # the pooler's, and the classifier
    start(trial)
    assert trial.total("replies") and trial.notes == ""
    assert all(bool(half.get_parameter(name).any()) for name in names)


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2"])
def test_a_resumed_run_is_the_same_and_its_model_plain(
    method: str, data: Path, models: dict[str, str], tmp_path: Path
) -> None:
    task, options = small(models["bert"]), {**SETTINGS, "rounds": 3}
    whole = run(task, method, out=tmp_path / "whole", **options)
    run(task, method, out=tmp_path / "parts", **{**options, "rounds": 1})
    again = run(task, method, out=tmp_path / "parts", resume=True, **options)
    assert equal(whole.model, again.model)
    kept = RunDirectory(tmp_path / "parts").load_model()
    assert equal(kept, again.model) and {v.dtype for v in kept.values()} == {torch.float32}
    names = small(models["bert"], "float32").build(0)
    assert set(kept) == {*names.client.state_dict(), *names.server.state_dict()}


def test_a_journal_replays_to_the_same_bits(
    data: Path, models: dict[str, str], tmp_path: Path
) -> None:
    task = small(models["bert"])
    done = run(task, "ho_sfl", out=tmp_path / "run", **SETTINGS)
    journal = Journal.load(tmp_path / "run" / "journal.bin")
    forget(task.key)  # built anew, as on another machine
    vector = ParameterVector(task.build(model_seed(0)).client)
    assert vector.anchor.dtype == torch.float32 and all("lora_" in n for n in vector.names)
    replica = Replica.initial(vector.anchor, journal.header, vector.shapes)
    replica.replay(journal.entries)
    for name, value in vector.named(replica.theta).items():
        assert torch.equal(value, done.model[name])


@pytest.mark.parametrize("theirs", ["float32", "int8"])
def test_a_client_with_another_base_is_refused(
    theirs: str, data: Path, models: dict[str, str], tmp_path: Path
) -> None:
    trial = begin(small(models["bert"]), "ho_sfl", **SETTINGS)
    other = small(models["bert"], theirs)
    if theirs == "int8":
        build = other.model

        def shifted() -> Any:
            model: Any = build()
            with torch.no_grad():
                model.bert.encoder.layer[0].output.dense.weight.qdata[0, 0] ^= 1
            return model

        other = replace(other, model=shifted)
    trial.grid._app = make_client_app(lambda context: other)
    with pytest.raises(DataError, match=r"Client 0 builds other frozen parameters than the server"):
        start(trial)


class Stop(Exception):
    """Ends a run before its first exchange."""


def test_first_weights_of_what_is_trained_may_be_given(data: Path, models: dict[str, str]) -> None:
    def stop(*_: Any) -> None:
        raise Stop

    def warm(changed: str) -> Trial:
        trial = begin(small(models["bert"]), "splitfed_v2", **SETTINGS)
        first = {**trial.model, changed: trial.model[changed] + 1}
        trial.strategy.arrays = lambda: ArrayRecord(first)
        trial.strategy.train_round = stop
        return trial

    trial = warm("classifier.bias")
    before = trial.model["classifier.bias"]
    with pytest.raises(Stop):
        start(trial)
    assert torch.equal(trial.model["classifier.bias"], before + 1)
    for layer, says in ((0, "they are frozen and never sent"), (3, "it is quantised there")):
        with pytest.raises(TrainingError, match=says):
            start(warm(f"bert.encoder.layer.{layer}.output.dense.weight"))


def test_a_half_precision_base_runs_too(data: Path, models: dict[str, str]) -> None:
    trial = begin(small(models["bert"], "bfloat16"), "ho_sfl", **SETTINGS)
    before = dequantised(trial.strategy.client_half.state_dict())
    before = {name: value.clone() for name, value in before.items()}
    after = start(trial).model
    assert trial.notes == ""
    assert {n for n, v in before.items() if not torch.equal(v, after[n])} <= trained(trial)
