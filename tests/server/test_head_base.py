"""Auxiliary heads with frozen parts, as of a model with LoRA: only what is trained travels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.errors import DataError, TrainingError
from sfl_flower.run.client_app import make_client_app
from sfl_flower.split import base_state, travelling_state
from tests.texts import RANK, texts
from tests.tiny import SharedOut, Trial, begin, equal, run, start, train

BLOCK, H = "block:3", 16
# LoRA on the attention of one block and the output layer, by hand.
SIZES = {
    "gpt2-classes": RANK * H + 3 * H * RANK + 3 * H,
    "bert-classes": 2 * (RANK * H + H * RANK) + 3 * H + 3,
}
BYTES = {name: 4 * size for name, size in SIZES.items()}
GPT2, BERT = SIZES
HEAD: dict[str, Any] = {"head": f"blocks:{BLOCK}", "head_init": "copy"}
METHODS: dict[str, dict[str, Any]] = {
    "cse_fsl": {},
    "heron": {"probes": 2, "head_trainer": "client"},
    "fsl_sage": {"align_epochs": 2, "warm_start": True, "head_lr": 0.1},
}


def open_run(task: SharedOut, method: str, **options: Any) -> Trial:
    own = {"clients": 2, "rounds": 2, **METHODS.get(method, {}), **HEAD, **options}
    return begin(task, method, **own)


def kept(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of what of a module stays and of what travels."""
    base, own = base_state(module), travelling_state(module)
    return {k: v.clone() for k, v in base.items()}, {k: v.clone() for k, v in own.items()}


CASES: list[tuple[str, dict[str, Any], int, int]] = [
    # How often a head goes up and down, with two clients and two rounds.
    ("cse_fsl", {}, 4, 4),
    ("heron", {"uplink": "weights"}, 4, 4),
    ("heron", {"uplink": "scalars"}, 0, 4),
    ("heron", {"head_trainer": "server"}, 0, 4),
    ("fsl_sage", {}, 2, 4),  # round 1 is CSE-FSL's, round 2 brings the aligned heads
]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("method", "options", "up", "down"), CASES)
def test_only_what_is_trained_travels_and_moves(
    method: str, options: dict[str, Any], up: int, down: int, name: str
) -> None:
    trial = open_run(texts(name), method, **options)
    head = trial.strategy.head
    assert sum(value.numel() for value in travelling_state(head).values()) == SIZES[name]
    base, before = kept(head)
    assert base
    start(trial)
    assert trial.total("replies") == 4 and trial.notes == ""
    ledger = trial.strategy.ledger
    assert (ledger.up["auxiliary"], ledger.down["auxiliary"]) == (
        up * BYTES[name],
        down * BYTES[name],
    )
    assert equal(base_state(head), base)
    assert all(not torch.equal(v, before[k]) for k, v in travelling_state(head).items())


@pytest.mark.parametrize("name", SIZES)
def test_scalars_and_weights_give_the_same_bits(name: str) -> None:
    trials = [start(open_run(texts(name), "heron", uplink=u)) for u in ("scalars", "weights")]
    first, second = (t.model | t.strategy.head.state_dict() for t in trials)
    assert equal(first, second)


@pytest.mark.parametrize("name", SIZES)
def test_an_alignment_moves_what_is_trained(name: str) -> None:
    trial = start(open_run(texts(name), "fsl_sage"))
    base, common = kept(trial.strategy.head)
    for client in (0, 1):
        own = trial.strategy.bank.head(client).module
        assert equal(base_state(own), base)
        # The frozen part is there once for all clients.
        assert [v.data_ptr() for v in base_state(own).values()] == [
            v.data_ptr() for v in base_state(trial.strategy.head).values()
        ]
        assert trial.strategy.bank.state(client).keys() == common.keys()
        assert all(not torch.equal(v, common[k]) for k, v in travelling_state(own).items())


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_same(method: str, tmp_path: Path) -> None:
    options = {"clients": 2, **METHODS[method], **HEAD, "client_lr": 0.01}
    options |= {"client_lr_schedule": "constant", "client_lr_warmup": 0}
    whole = run(texts(GPT2), method, out=tmp_path / "whole", rounds=4, **options)
    run(texts(GPT2), method, out=tmp_path / "parts", rounds=2, **options)
    again = run(texts(GPT2), method, out=tmp_path / "parts", resume=True, rounds=4, **options)
    assert equal(whole.model, again.model)


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_hold_what_travels(method: str) -> None:
    trial = start(open_run(texts(GPT2), method))
    tensors, values = trial.strategy.checkpoint()
    heads = [k for k in tensors if k.startswith(("head.", "heads."))]
    assert heads and not [k for k in heads if "c_fc" in k]
    other = open_run(texts(GPT2, partial(shifted, where=LATER)), method)
    with pytest.raises(TrainingError, match="made with other frozen parameters"):
        other.strategy.resume(tensors, values)


# Joining

LATER = "transformer.h.2.mlp.c_fc.weight"  # behind the cut, and in the head


def shifted(model: nn.Module, where: str) -> None:
    with torch.no_grad():
        model.get_parameter(where).add_(1)


def joined(theirs: SharedOut, ours: SharedOut, method: str, **options: Any) -> Trial:
    trial = open_run(ours, method, **options)
    theirs.given(trial.strategy.config)
    trial.grid._app = make_client_app(lambda context: theirs)
    return start(trial)


@pytest.mark.parametrize("method", METHODS)
def test_a_client_whose_head_has_another_base_is_refused(method: str) -> None:
    says = r"Client 0 builds other frozen parameters than the server .* its model\(\) and head\(\)"
    with pytest.raises(DataError, match=says):
        joined(texts(GPT2, partial(shifted, where=LATER)), texts(GPT2), method)


def test_blocks_that_the_head_does_not_have_may_differ() -> None:
    theirs = texts(GPT2, partial(shifted, where="transformer.h.3.mlp.c_fc.weight"))
    assert joined(theirs, texts(GPT2), "cse_fsl").total("replies") == 4


def own_head(shift: float = 0.0) -> nn.Module:
    """Return a head whose first layer, drawn from the run's seed, stays as it is."""
    first = nn.Linear(H, 4).requires_grad_(False)
    first.weight.add_(shift)
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(40, 3))


def test_a_frozen_layer_of_the_tasks_own_head() -> None:
    options = {"head": "task", "head_init": "random"}
    trial = joined(texts(GPT2, head=own_head), texts(GPT2, head=own_head), "cse_fsl", **options)
    assert trial.total("replies") == 4
    assert trial.strategy.ledger.up["auxiliary"] == 4 * 4 * (40 * 3 + 3)
    with pytest.raises(DataError, match="builds other frozen parameters"):
        other = texts(GPT2, head=partial(own_head, 1.0))
        joined(other, texts(GPT2, head=own_head), "cse_fsl", **options)


def test_a_head_that_is_trained_whole_is_not_compared() -> None:
    trial = begin(texts(GPT2), "cse_fsl", clients=2, rounds=1, head="pooled")
    start(trial)
    (content,) = [c for kind, n, c in trial.grid.requests if kind == "join" and n == 0]
    assert "head" not in content.config_records["config"]
    assert trial.strategy.ledger.up["auxiliary"] == 2 * 4 * (3 * H + 3)


def test_a_run_without_frozen_parts_sends_its_head_whole() -> None:
    task = texts(BERT, lambda model: model.requires_grad_(True))
    trial = train(task, "cse_fsl", clients=2, rounds=1, **HEAD)
    size = sum(p.numel() for p in trial.strategy.head.parameters())
    assert trial.strategy.ledger.up["auxiliary"] == 2 * 4 * size > 2 * BYTES[BERT]
