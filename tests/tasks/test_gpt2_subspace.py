"""GPT-2, whose layers keep their weights as [in, out], in few directions of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted
from sfl_flower.split import plain_weights
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from tests.tasks.language import WORDS, checkpoint, write
from tests.tiny import equal, train

SETTINGS: dict[str, Any] = {"rounds": 2, "clients": 2, "partition": "iid", "client_lr": 0.2}
SQUARE = "transformer.h.0.attn.c_proj"
"""A layer of 16 inputs and 16 outputs."""


@pytest.fixture
def gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    rows = [
        (" ".join(WORDS[(i * i + j) % len(WORDS)] for j in range(2 + i % 4)), i % 2)
        for i in range(12 + 64)
    ]
    for name in ("sst2_train", "sst2_dev"):
        write(tmp_path / f"{name}.csv.gz", ("sentence", "label"), rows)
    return checkpoint(tmp_path / "gpt2", "gpt2")


def small(model: str, trained: str, **options: Any) -> SplitTask:
    given = {"max_length": 8, "lora_rank": 0, "train_size": 12, "cut": "block:1", **options}
    return load_task("sst2", model=model, trained=trained, **given)


@pytest.mark.flower
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", ["subspace:2", "core:2"])
def test_a_run_replays_to_the_bit_and_leaves_a_plain_model(
    trained: str, base_dtype: str, gpt2: str
) -> None:
    options = {"base_dtype": base_dtype}
    if base_dtype != "float32":
        options["head"] = "classifier"
    task = small(gpt2, trained, **options)
    replayed, loaded = (train(task, sync=s, **SETTINGS) for s in ("replay", "download"))
    assert equal(replayed.model, loaded.model)
    assert replayed.total("replies") and replayed.notes == ""
    first = plain_weights(fitted(task, 0).client.state_dict())
    assert not torch.equal(replayed.model[f"{SQUARE}.weight"], first[f"{SQUARE}.weight"])
    plain = task.whole(0).eval()
    plain.load_state_dict(replayed.model)
    x, half = task.samples("test").x, replayed.strategy.client_half.eval()
    with torch.no_grad():
        moved, left = replayed.strategy.server.module.eval()(half(x)), plain(x).logits
    close = 1e-5 if base_dtype == "float32" else 5e-2  # what is left is rounded to bfloat16
    assert float((moved - left).norm()) < close * float(left.norm())


def test_all_directions_hold_all_of_a_square_layers_gradient(gpt2: str) -> None:
    task = small(gpt2, f"subspace:16:{SQUARE}")
    gradients = [
        {name: g for name, g in each.items() if name.startswith(SQUARE)}
        for each in sample_gradients(task, 0, 2, 10)
    ]
    assert energy_share(fitted(task, 0).client, gradients).batches == pytest.approx(1.0, rel=1e-5)
    one = small(gpt2, f"subspace:1:{SQUARE}")
    assert 0 < energy_share(fitted(one, 0).client, gradients).batches < 1
