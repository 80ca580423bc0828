"""The exported model: the run's bits in the user's names, a card, and what others read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfl_flower import SplitTask, export_model, load_exported, load_task, simulate
from sfl_flower.cli.main import main
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report import RoundRecord, RunDirectory
from sfl_flower.report.files import config_digest
from sfl_flower.report.tensors import save_tensors
from sfl_flower.reporting.exporting import task_of
from sfl_flower.reporting.loading import state_digest
from sfl_flower.reporting.runs import ReadRun
from tests.tiny import samples

BRIEF: dict[str, Any] = {
    "backend": "inline",
    "clients": 2,
    "rounds": 2,
    "partition": "iid",
    "seed": 3,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    simulate("digits", "ho_sfl", out=out, probes=2, **BRIEF)
    return out


def own_task(model: Any, cut: str, **options: Any) -> SplitTask:
    """Return a task of 6 numbers and 3 classes that is none of the ready-made ones."""
    return SplitTask(
        "mine", model, cut, train=lambda: samples(64), test=lambda: samples(20, 1), classes=3,
        **options,
    )  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_comes_back_in_two_lines_to_the_bit(digits: Path, tmp_path: Path) -> None:
    assert main(["export", str(digits), "--out", str(tmp_path / "model")]) == 0
    task = load_task("digits")
    model = load_exported(tmp_path / "model", task.model()).eval()
    run = RunDirectory(digits)
    saved = run.load_model()
    assert equal(model.state_dict(), saved)
    facts = json.loads((tmp_path / "model" / "export.json").read_text())
    assert facts["digest"] == state_digest(saved) == state_digest(model.state_dict())
    assert (facts["method"], facts["round"], facts["cut"]) == ("ho_sfl", 2, "tanh1")
    summary, _ = run.load_summary()
    assert task.evaluate(model)["accuracy"] == summary.metrics["accuracy"]


def test_the_block_of_the_card_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (export_model(digits, tmp_path / "FOLDER") / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec(block, names)
    assert equal(names["model"].state_dict(), RunDirectory(digits).load_model())


def test_the_card_says_what_the_model_is(digits: Path, tmp_path: Path) -> None:
    run = RunDirectory(digits)
    summary, facts = run.load_summary()
    card = (export_model(digits, tmp_path / "model") / "README.md").read_text()
    assert card.startswith("---\ntags:\n- sfl-flower\n")
    accuracy = summary.metrics["accuracy"]
    for said in (
        "# digits, trained with ho_sfl", "| cut | `tanh1`", "| rounds | 2 |", "| seed | 3 |",
        "| clients | 2, all in a round |", "| data | divided among clients: iid |",
        f"{summary.samples:,} of the {facts['training_samples']:,} that there are",
        f"Of the test set after round 2: accuracy {accuracy:.4f}",
        "is not known without a control", "so there is no epsilon", "520 (all)",
    ):  # fmt: skip
        assert said in card, said


def test_digests_tell_models_apart() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert state_digest(one) == state_digest(dict(reversed(one.items())))
    for other in (
        {**one, "a": torch.ones(2, dtype=torch.float64)}, {**one, "a": torch.ones(1, 2)},
        {**one, "a": torch.tensor([1.0, 2.0])}, {"c": one["a"], "b": one["b"]},
    ):  # fmt: skip
        assert state_digest(other) != state_digest(one)


class Normed(nn.Sequential):
    """A model with buffers, one of them whole numbers, and a layer that no forward uses."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self[3](self[2](self[1](self[0](x))))
        return y


@pytest.mark.parametrize("trained", ["all", "subspace:2"])
def test_a_task_of_ones_own_needs_no_task_to_be_exported(tmp_path: Path, trained: str) -> None:
    task = own_task(Normed, cut="2", trained=trained)
    simulate(task, "heron", out=tmp_path / "run", **BRIEF)
    folder = export_model(tmp_path / "run", tmp_path / "model")
    model = load_exported(folder, Normed())
    saved = RunDirectory(tmp_path / "run").load_model()
    assert equal(model.state_dict(), saved) and model.training
    assert saved["1.num_batches_tracked"].dtype == torch.int64
    assert "here called `MyModel`" in (folder / "README.md").read_text()
    with pytest.raises(ConfigError, match="give it as task="):
        export_model(tmp_path / "run", tmp_path / "onnx", onnx=True)
    assert not (tmp_path / "onnx").exists()
    again = export_model(tmp_path / "run", folder, task=task)
    assert equal(load_exported(again, Normed()).state_dict(), saved)


def test_another_model_is_refused_and_left_as_it_was(digits: Path, tmp_path: Path) -> None:
    folder = export_model(digits, tmp_path / "model")
    with pytest.raises(DataError, match=r"'0\.bias' is in the model given"):
        load_exported(folder, Normed())
    model = load_task("digits").model()
    first = next(iter(model.state_dict()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = RunDirectory(digits).load_model()
    for changed, words in (
        ({**state, first: state[first].double()}, "torch.float64"),
        ({**state, first: state[first][:1]}, r"\[1, "),
        ({**state, "more": state[first]}, "'more' is in the file alone"),
    ):
        save_tensors(folder / "model.safetensors", changed, {})
        with pytest.raises(DataError, match=words):
            load_exported(folder, model)
    data = bytearray((digits / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        load_exported(folder, model)
    assert equal(model.state_dict(), before)


def test_wrong_places_are_refused(
    digits: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "model")]) == 1
    assert "is no run directory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is the run itself"):
        export_model(digits, digits)
    with pytest.raises(ConfigError, match="has no row with the run in"):
        export_model(digits, tmp_path / "model", comparison=compared)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot make the folder"):
        export_model(digits, tmp_path / "file" / "model")
    with pytest.raises(DataError, match="is of another model"):
        export_model(digits, tmp_path / "model", task=own_task(Normed, cut="2"))
    assert not (tmp_path / "model").exists()


def test_a_run_that_is_going_is_exported_as_it_was_saved_last(tmp_path: Path) -> None:
    config = {"task": "mine", "method": "ho_sfl", "rounds": 9, "seed": 0}
    with RunDirectory.create(tmp_path / "run", config, tensorboard=False) as run:
        run.append(RoundRecord(1, 32, 4, 0.5, metrics={"accuracy": 0.25}))
        with pytest.raises(ConfigError, match="has saved no model yet"):
            export_model(run.path, tmp_path / "model")
        run.save_model(nn.Linear(2, 1).state_dict())
        card = (export_model(run.path, tmp_path / "model") / "README.md").read_text()
    assert "**The run is not complete (going, 1 of 9 rounds)**" in card
    assert "Of the test set after round 1: accuracy 0.2500." in card
    assert json.loads((tmp_path / "model/export.json").read_text())["complete"] is False


def test_a_comparison_gives_the_control_and_a_private_run_its_epsilon(
    compared: Path, tmp_path: Path
) -> None:
    at = compared / "runs" / "seed1" / "ho"
    RunDirectory(at, tensorboard=False).save_model(nn.Linear(2, 1).state_dict())
    summary = json.loads((at / "summary.json").read_text())
    summary.pop("sha256")  # as files of earlier releases are
    summary["terms"]["privacy"] = "epsilon = 3 at delta = 1e-05 for each sample."
    (at / "summary.json").write_text(json.dumps(summary))
    config = json.loads((at / "config.json").read_text())
    config["config"]["task"] = "mine"
    config["sha256"] = config_digest(config["config"])
    (at / "config.json").write_text(json.dumps(config))
    card = (export_model(at, tmp_path / "model", comparison=compared) / "README.md").read_text()
    assert "Of the test set after round 1: accuracy 0.8000." in card
    assert "has accuracy 0.7000 ± 0.1414 over 2 seeds; the control, whose clients are never" in card
    assert "trained, has 0.5000." in card
    assert "Its margin over control and walk is +0.1500." in card
    assert "Epsilon = 3 at delta = 1e-05 for each sample." in card


def test_options_of_the_task_are_those_of_the_run(tmp_path: Path) -> None:
    simulate("digits", "frozen", out=tmp_path / "run", **{**BRIEF, "task.trained": "bias"})
    task = task_of(ReadRun.read(tmp_path / "run"))
    assert task is not None and task.trained == "bias"
    card = (export_model(tmp_path / "run", tmp_path / "model") / "README.md").read_text()
    assert "load_task('digits', trained='bias').model()" in card


def test_the_client_half_runs_in_onnxruntime(digits: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    assert main(["export", str(digits), "--out", str(tmp_path / "model"), "--onnx"]) == 0
    task = load_task("digits")
    halves = task.build(0)
    state = RunDirectory(digits).load_model()
    halves.client.load_state_dict({name: state[name] for name in halves.client.state_dict()})
    session = runtime.InferenceSession(tmp_path / "model" / "client.onnx")
    x = task.batch(task.samples("test"), slice(0, 20))[0]
    for count in (1, 20):
        (z,) = session.run(["z"], {"x": x[:count].numpy()})
        with torch.no_grad():
            wanted = halves.client.eval()(x[:count])
        assert torch.allclose(torch.from_numpy(z), wanted, rtol=1e-5, atol=1e-6)
    facts = json.loads((tmp_path / "model" / "export.json").read_text())["onnx"]
    assert facts["output"] == "z: tensor(float) ['samples', 8]"
    assert 0 <= facts["largest_difference"] < 1e-5 < facts["largest_value"]


def test_a_norm_has_its_running_statistics_in_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    task = own_task(Normed, cut="2")
    simulate(task, "splitfed_v2", out=tmp_path / "run", **BRIEF)
    folder = export_model(tmp_path / "run", tmp_path / "model", task=task, onnx=True)
    model = load_exported(folder, Normed()).eval()
    x = task.batch(task.samples("test"), slice(0, 5))[0]
    (z,) = runtime.InferenceSession(folder / "client.onnx").run(["z"], {"x": x.numpy()})
    assert torch.allclose(
        torch.from_numpy(z), model[2](model[1](model[0](x))), rtol=1e-4, atol=1e-5
    )


class Sorted(nn.Module):
    """A layer that ONNX has no form for, at least not in torch's exporter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x * torch.linalg.eigvalsh(x[:, :2].T @ x[:, :2]).sum()
        return y


def test_what_has_no_form_in_onnx_is_said_before_anything_is_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    task = own_task(lambda: nn.Sequential(nn.Linear(6, 4), Sorted(), nn.Linear(4, 3)), cut="1")
    simulate(task, "frozen", out=tmp_path / "run", **BRIEF)
    with pytest.raises(ConfigError, match="has no form in ONNX"):
        export_model(tmp_path / "run", tmp_path / "model", task=task, onnx=True)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'sfl-flower\[onnx\]'"):
        export_model(digits, tmp_path / "model", onnx=True)
    assert not (tmp_path / "model").exists()


def test_help_fits_a_screen_and_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = capsys.readouterr().out
    assert "Example: sfl export runs/ho_sfl --out model" in said
    assert len(said.splitlines()) <= 24


def test_a_task_of_ones_own_is_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    task: SplitTask = own_task(Normed, cut="2")
    simulate(task, "frozen", out=tmp_path / "run", **BRIEF)
    monkeypatch.setattr("sfl_flower.cli.export.given_task", lambda name, _: task)
    given = ["--out", str(tmp_path / "model"), "--onnx"]
    assert main(["export", str(tmp_path / "run"), *given]) == 2
    assert main(["export", str(tmp_path / "run"), *given, "--task", "mine:task"]) == 0
    assert (tmp_path / "model" / "client.onnx").exists()


def test_a_folder_of_other_files_is_left_alone(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "README.md").write_text("my own")
    with pytest.raises(ConfigError, match="holds other files than those of an earlier export"):
        export_model(digits, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own"
    assert {path.name for path in tmp_path.iterdir()} == {"transformers", "README.md"}


def test_an_export_over_an_earlier_one_leaves_nothing_of_it(digits: Path, tmp_path: Path) -> None:
    export_model(digits, tmp_path / "model")
    (tmp_path / "model" / "client.onnx").write_bytes(b"of another model")
    (tmp_path / "model" / "transformers").mkdir()
    export_model(digits, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md", "export.json", "model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("u_shaped", {}, "smashed data, and gradients that tell labels to whoever looks"),
        ("ho_sfl", {}, "no epsilon. The server saw smashed data and labels."),
        ("ho_sfl", {"label_epsilon": 2.0}, "Labels were replaced at random before anything"),
        ("frozen", {}, "what an untrained lower half on clients made of their data"),
        ("fedavg", {}, "clients trained as a whole"),
    ],
)
def test_the_card_says_what_was_trained_where_and_what_was_seen(
    method: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    simulate("digits", method, rounds=1, clients=2, backend="inline", out=tmp_path / "r", **options)
    card = (export_model(tmp_path / "r", tmp_path / "model") / "README.md").read_text()
    assert said in card
    if options:
        assert "No noise was added" not in card and "and labels." not in card
