"""Checkpoints whose frozen linear layers are int8: what is quantised, and how close it stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config

from sfl_flower.data import seeded_construction
from sfl_flower.errors import ConfigError
from sfl_flower.split import cut, dequantised, held_bytes, parts
from sfl_flower.split.parameters.quantised import is_quantised
from sfl_flower.tasks.checkpoints import Checkpoint
from tests.tasks.language import checkpoint

HIDDEN, INNER, LAYERS = 16, 24, 4


def build(model: str, base_dtype: str = "int8", head: str = "classifier", **options: Any) -> Any:
    words = (" It was", "terrible", "great") if head == "verbaliser" else ()
    with seeded_construction(0):
        return Checkpoint("sst2", model, head, 8, words, base_dtype=base_dtype, **options).build()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("opt"), "opt")


def quantised(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if is_quantised(value)}


def test_frozen_linear_layers_are_quantised_and_nothing_else(bert: str) -> None:
    tuning = config.coordinate_descent_tuning  # which torchao would switch on for all
    model = build(bert)
    assert config.coordinate_descent_tuning == tuning
    attention = [
        f"attention.self.{name}" for name in ("query.base_layer", "key", "value.base_layer")
    ]
    layers = [*attention, "attention.output.dense", "intermediate.dense", "output.dense"]
    assert quantised(model) == {
        f"bert.encoder.layer.{number}.{layer}.weight"
        for number in range(LAYERS)
        for layer in layers
    }
    plain = {name: p for name, p in model.named_parameters() if not is_quantised(p)}
    assert {p.dtype for p in plain.values()} == {torch.float32}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= trained <= set(plain)
    assert trained == {n for n, p in build(bert, "float32").named_parameters() if p.requires_grad}


def test_weights_stay_within_half_a_step_and_a_quarter_of_the_bytes(bert: str) -> None:
    small, model = build(bert), build(bert, "float32")
    for name in quantised(small):
        value = small.get_parameter(name)
        scale = dict(parts("w", value))["w.scale"]
        error = (value.dequantize() - model.get_parameter(name)).abs()
        assert (error <= scale / 2 * (1 + 1e-4)).all() and error.any()
    found, whole = (
        held_bytes(m.get_parameter(name) for name in quantised(small)) for m in (small, model)
    )
    # A row has a scale and a zero point besides its numbers.
    rows = LAYERS * (5 * HIDDEN + INNER)
    assert whole == 4 * LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    assert found == whole // 4 + 5 * rows


def test_halves_equal_the_whole_bit_for_bit(bert: str, opt: str) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 6, 0, 0]])
    for model in (build(bert), build(opt)):
        for at in range(1, LAYERS):
            both = cut(model.eval(), f"block:{at}", example=(ids,))
            assert quantised(both.client) | quantised(both.server) == quantised(model)


def test_what_comes_out_is_close_to_float32(bert: str) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 6, 0, 0]])
    outputs: list[Tensor] = []
    for base_dtype in ("float32", "int8"):
        halves = cut(build(bert, base_dtype).eval(), "block:2")
        with torch.no_grad():
            outputs.append(halves.client(ids))
    error = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert 0 < error < 0.02


def test_an_output_layer_tied_to_the_embeddings_is_one_of_them(opt: str) -> None:
    model = build(opt, head="tokens")
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    assert not is_quantised(model.lm_head.weight)
    assert "model.decoder.layers.0.fc1.weight" in quantised(model)


def test_values_by_name_are_those_of_the_checkpoint(opt: str) -> None:
    state = dequantised(build(opt).state_dict())
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in build(opt, "float32").state_dict().items()
    }


def test_gpt2_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "gpt2", "gpt2")
    says = r"'base_dtype' .* it must be float32, bfloat16 or float16 for .* \(Conv1D\) torchao"
    with pytest.raises(ConfigError, match=says) as caught:
        build(folder)
    assert "\n" not in str(caught.value)


def test_without_torchao(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"needs torchao; run `pip install 'sfl-flower\[langua"):
        build(bert)


def test_nothing_is_said(bert: str) -> None:
    program = (
        "from sfl_flower.tasks.checkpoints import Checkpoint\n"
        f"Checkpoint('sst2', {bert!r}, 'classifier', 8, base_dtype='int8').build()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
