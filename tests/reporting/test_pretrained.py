"""Language models: adapters stay in the export, and are merged in the folder for transformers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import transformers

from sfl_flower import SplitTask, export_model, load_exported, load_task, simulate
from sfl_flower.data import model_seed
from sfl_flower.report import RunDirectory
from sfl_flower.reporting.loading import state_digest
from sfl_flower.reporting.pretrained import merged, write_pretrained
from sfl_flower.split import load_dequantised
from sfl_flower.tasks import read_task_options
from sfl_flower.tasks.mean_pooled import MeanPooledBert
from sfl_flower.tasks.own_text import text_task
from tests.tasks.language import WORDS, checkpoint, write

KINDS = ["LOC", "NUM", "HUM"]
ROWS = [(f"{WORDS[i % len(WORDS)]} film", KINDS[i % 3]) for i in range(24)]


def trained(tmp_path: Path, kind: str, **options: Any) -> tuple[SplitTask, Path]:
    """Return a task on a tiny checkpoint, and a run of it by backprop, so that adapters move."""
    fields: dict[str, Any] = {"labels": KINDS, "max_length": 8, "lora_rank": 2, "cut": "block:2"}
    task = text_task(
        "questions", lambda: ROWS, lambda: ROWS[:12],
        model=checkpoint(tmp_path / kind, kind), **{**fields, **options},
    )  # fmt: skip
    out = tmp_path / "run"
    simulate(
        task, "splitfed_v2", backend="inline", clients=2, rounds=2, partition="iid", out=out,
        client_lr=0.5, server_lr=0.5,
    )  # fmt: skip
    return task, out


@pytest.mark.parametrize(
    ("kind", "base"), [("bert", "float32"), ("gpt2", "float32"), ("llama", "int8")]
)
def test_adapters_are_merged_for_transformers_and_kept_for_the_task(
    tmp_path: Path, kind: str, base: str
) -> None:
    task, run = trained(tmp_path, kind, base_dtype=base)
    folder = export_model(run, tmp_path / "model", task=task)
    saved = RunDirectory(run).load_model()
    assert any("lora_B" in name and bool(value.any()) for name, value in saved.items())
    model = load_exported(folder, task.model()).eval()
    facts = json.loads((folder / "export.json").read_text())
    assert state_digest(model.state_dict()) == state_digest(saved) == facts["digest"]
    assert facts["transformers"]["adapters"] == {"bert": 8, "gpt2": 4, "llama": 12}[kind]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "transformers")
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    assert facts["transformers"]["class"] == f"transformers.{type(plain).__name__}"
    x = task.batch(task.samples("test"), slice(0, 6))[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "transformers")
    assert tokenizer("film").input_ids
    ids, mask = x, (x != plain.config.pad_token_id).long()
    assert not bool(mask.all())
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask).logits
        theirs = plain.eval()(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert f"from transformers import {type(plain).__name__}" in card
    assert "LoRA adapters are merged into the weights." in card


@pytest.mark.parametrize(("kind", "base"), [("bert", "float32"), ("llama", "int8")])
def test_client_blocks_run_in_onnxruntime(tmp_path: Path, kind: str, base: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    task, run = trained(tmp_path, kind, base_dtype=base)
    folder = export_model(run, tmp_path / "model", task=task, onnx=True)
    client = task.build(model_seed(0)).client.eval()
    load_dequantised(client, RunDirectory(run).load_model())
    x = task.batch(task.samples("test"), slice(0, 9))[0]
    assert bool((x[:, -1] == x[0, -1]).all())  # padding in every row, which torch leaves out
    (z,) = runtime.InferenceSession(folder / "client.onnx").run(["z"], {"x": x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(z), client(x), rtol=1e-4, atol=1e-5)


def test_a_model_without_adapters_is_read_back_to_the_bit(tmp_path: Path) -> None:
    task, run = trained(tmp_path, "bert", lora_rank=0)
    folder = export_model(run, tmp_path / "model", task=task)
    plain = transformers.BertForSequenceClassification.from_pretrained(folder / "transformers")
    saved = RunDirectory(run).load_model()
    assert state_digest(plain.state_dict()) == state_digest(saved)
    assert "adapters" not in (folder / "README.md").read_text()


def test_a_class_of_this_package_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bert", "bert")
    rows = [(text, str(KINDS.index(kind) % 2)) for text, kind in ROWS]
    for name in ("train", "dev"):
        write(tmp_path / "data" / f"sst2_{name}.csv.gz", ("sentence", "label"), rows)
    options = {"model": str(tmp_path / "bert"), "data_dir": str(tmp_path / "data")}
    options |= {"head": "pooled", "max_length": "8", "train_size": "16", "test_size": "8"}
    task, run = load_task("sst2", **read_task_options("sst2", options)), tmp_path / "run"
    given: dict[str, Any] = {f"task.{name}": value for name, value in options.items()}
    simulate("sst2", "splitfed_v2", backend="inline", clients=2, rounds=1, out=run,
             partition="iid", **given)  # fmt: skip
    folder = export_model(run, tmp_path / "model")  # a ready-made task is known
    said = "from sfl_flower.tasks.mean_pooled import MeanPooledBert"
    assert said in (folder / "README.md").read_text()
    plain: Any = MeanPooledBert.from_pretrained(folder / "transformers")
    plain.eval()
    ids = task.batch(task.samples("test"), slice(0, 6))[0]
    mask = (ids != plain.config.pad_token_id).long()
    with torch.no_grad():
        ours = load_exported(folder, task.model()).eval()(input_ids=ids, attention_mask=mask).logits
        theirs = plain(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_low_precision_is_widened_where_it_is_mixed(tmp_path: Path) -> None:
    task, run = trained(tmp_path, "bert", base_dtype="bfloat16")
    folder = export_model(run, tmp_path / "model", task=task)
    plain = transformers.BertForSequenceClassification.from_pretrained(folder / "transformers")
    assert {value.dtype for value in plain.parameters()} == {torch.float32}
    saved = RunDirectory(run).load_model()
    name = "bert.embeddings.word_embeddings.weight"
    assert saved[name].dtype == torch.bfloat16
    assert torch.equal(plain.state_dict()[name], saved[name].float())


def test_what_transformers_cannot_read_back_is_said(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    model.classifier = torch.nn.Linear(4, 7)  # of what the configuration says nothing
    found = write_pretrained(model, model.state_dict(), tmp_path / "folder")
    assert found is not None and found["class"] is None
    assert "no folder for `from_pretrained`" in found["says"] and "classifier" in found["says"]
    assert not (tmp_path / "folder").exists()
    assert write_pretrained(torch.nn.Linear(1, 1), {}, tmp_path / "folder") is None


def test_a_model_that_peft_wrapped_is_merged_by_hand_numbers(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=8,
    )  # fmt: skip
    lora = peft.LoraConfig(r=1, lora_alpha=3, target_modules=["query"], task_type="SEQ_CLS")
    wrap = partial(peft.get_peft_model, peft_config=lora)
    model = wrap(transformers.BertForSequenceClassification(config))
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        layer.base_layer.weight.fill_(1.0)
        layer.lora_A.default.weight.copy_(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
        layer.lora_B.default.weight.copy_(torch.tensor([[1.0], [0.0], [0.0], [-1.0]]))
    weights, count = merged(model, model.state_dict())
    assert count == 1
    # 1 + 3 B A: rows of 1 + 3 (1, 0, 2, 0), of 1, of 1, of 1 - 3 (1, 0, 2, 0).
    wanted = [[4.0, 1.0, 7.0, 1.0], [1.0] * 4, [1.0] * 4, [-2.0, 1.0, -5.0, 1.0]]
    assert weights["bert.encoder.layer.0.attention.self.query.weight"].tolist() == wanted
    found = write_pretrained(model, model.state_dict(), tmp_path / "folder")
    assert found == {
        "class": "transformers.BertForSequenceClassification", "adapters": 1,
        "says": "`transformers/` holds it for transformers, and needs no peft. Its 1 LoRA adapters "
        "are merged into the weights.",
    }  # fmt: skip
