from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError, CutError, DataError
from sfl_flower.node.node import Node
from sfl_flower.node.store import NodeStore
from sfl_flower.node.tail import backprop, forwards
from sfl_flower.split import cut, cut_tail
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.strategies.u_shaped import UShapedSettings
from sfl_flower.task.models import TAIL, new_tail, tailed
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import begin, equal, start, train

ROUND: dict[str, Any] = {**tiny.PAPER, "rounds": 4, "server_momentum": 0.9}
AT_TAIL = "head.float32"
"""Name on the wire of the gradients at the tail."""


def node(count: int = 6) -> Node:
    """Return a client with as many samples of the tiny task."""
    task = tiny.task(clients=1, each=count)
    store = NodeStore(Context(1, 7, {}, RecordDict(), {}))
    rows = np.arange(count)
    cpu = torch.device("cpu")
    return Node(task, 0, "key", 0, task.samples("train"), rows, store, cpu, "as_built")


def at(client: Node) -> tuple[nn.Module, np.ndarray, Tensor]:
    """Return a client's tail, features and labels of its samples."""
    parts = tailed(client.task, 0)
    with torch.no_grad():
        z = client.task.build(0).client(client.samples.x)
        return new_tail(client.task, 0, f"{TAIL}act2"), parts.body(z).numpy(), client.samples.y


@pytest.mark.parametrize("minibatches", [1, 2])
def test_with_a_step_a_round_it_is_ho_sfl_to_the_bit(minibatches: int) -> None:
    own = {**ROUND, "minibatches": minibatches}
    labels, none = (train(tiny.task(), method, **own) for method in ("ho_sfl", "u_shaped"))
    assert equal(labels.model, none.model)
    assert labels.strategy.digest == none.strategy.digest
    losses = [[record.loss for record in trial.strategy.records] for trial in (labels, none)]
    assert losses[0] == losses[1]


def test_the_first_client_of_a_round_meets_the_body_of_its_features() -> None:
    own = {**ROUND, "server_steps": "batch", "sampled": 1}
    labels, none = (train(tiny.task(), method, **own) for method in ("ho_sfl", "u_shaped"))
    assert equal(labels.model, none.model)


def test_no_label_is_sent() -> None:
    trial = train(tiny.task(), "u_shaped", **ROUND)
    ledger = trial.strategy.ledger
    assert ledger.up["labels"] == 0
    # 4 rounds of 4 clients with 4 samples: features of 4 numbers down, their gradients up.
    assert ledger.down["smashed"] == ledger.up["gradients"] == 4 * 4 * 4 * 4 * 4
    assert ledger.down["auxiliary"] == ledger.up["auxiliary"] == 4 * 4 * (4 * 3 + 3) * 4
    assert train(tiny.task(), "ho_sfl", **ROUND).strategy.ledger.up["labels"] > 0


def test_the_tail_may_begin_earlier() -> None:
    trial = train(tiny.task(), "u_shaped", **ROUND, tail="hidden")
    assert equal(trial.model, train(tiny.task(), "u_shaped", **ROUND).model)


def test_micro_batches_give_the_same_gradients() -> None:
    whole, parts = (train(tiny.task(), "u_shaped", **ROUND, micro_batch=m) for m in ("all", "1"))
    for name, value in whole.model.items():
        torch.testing.assert_close(parts.model[name], value, rtol=1e-4, atol=1e-6)


def test_backprop_gives_the_gradients_of_the_mean_loss() -> None:
    client = node()
    tail, h, y = at(client)
    loss, rows, found = backprop(client, tail, h, y, (1, 0))
    given = torch.from_numpy(h).requires_grad_()
    expected = functional.cross_entropy(tail(given), y)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()))
    np.testing.assert_allclose(rows, given.grad.numpy(), rtol=1e-5, atol=1e-8)  # type: ignore[union-attr]
    for name, parameter in tail.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_as_many_forwards_as_features_give_the_whole_gradient_at_them() -> None:
    client = node()
    tail, h, y = at(client)
    before = {name: p.detach().clone() for name, p in tail.named_parameters()}
    exact_loss, exact, _ = backprop(client, tail, h, y, (1, 0))
    loss, rows, _ = forwards(client, tail, h, y, (1, 0), probes=4)
    assert loss == pytest.approx(exact_loss)
    np.testing.assert_allclose(rows, exact, rtol=0.02, atol=2e-4)
    assert all(torch.equal(p, before[name]) for name, p in tail.named_parameters())


def test_fewer_forwards_are_right_in_the_mean() -> None:
    client = node()
    tail, h, y = at(client)
    _, exact, at_tail = backprop(client, tail, h, y, (1, 0))
    found = [forwards(client, tail, h, y, (1, step), probes=2) for step in range(600)]
    mean = np.mean([rows for _, rows, _ in found], axis=0)
    assert np.linalg.norm(mean - exact) < 0.15 * np.linalg.norm(exact)
    mean_at_tail = torch.stack([own["out.weight"] for _, _, own in found]).mean(0)
    expected = at_tail["out.weight"]
    assert float((mean_at_tail - expected).norm()) < 0.25 * float(expected.norm())


def test_forwards_alone_train() -> None:
    trial = train(tiny.task(), "u_shaped", rounds=30, tail_order="zeroth", client_lr=0.05)
    losses = [record.metrics["loss"] for record in trial.strategy.records]
    assert losses[-1] < losses[0]
    assert trial.total("rejected") == 0


def test_labels_of_positions_need_backprop() -> None:
    client = node()
    tail, h, _ = at(client)
    with pytest.raises(DataError, match="tail_order=first"):
        forwards(client, tail, h, torch.zeros(6, 2, dtype=torch.int64), (1, 0), probes=2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("pipeline", True), ("temporal", 0.1), ("server_passes", 2)],
)
def test_what_needs_labels_or_other_exchanges_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option} is {value} with method 'u_shaped'"):
        begin(tiny.task(), "u_shaped", **{"server_steps": "batch", option: value})


def test_secure_sums_are_refused() -> None:
    with pytest.raises(ConfigError, match="secure_sums is True with method 'u_shaped'"):
        begin(tiny.task(), "u_shaped", secure_sums=True, directions="shared")


def test_its_options_are_those_of_ho_sfl_and_of_the_tail() -> None:
    own = set(UShapedSettings.__dataclass_fields__) - set(HOSFLSettings.__dataclass_fields__)
    assert own == {"tail", "tail_order", "tail_probes"}
    assert RunConfig().method == "ho_sfl"


def test_a_tail_that_is_no_layer_behind_the_cut_is_refused() -> None:
    with pytest.raises(CutError, match="must be one of hidden, act2"):
        begin(tiny.task(), "u_shaped", tail="first")


def test_a_server_half_of_one_layer_has_no_body() -> None:
    with pytest.raises(CutError, match="cut the model earlier"):
        begin(tiny.task(cut="act2"), "u_shaped")


def test_a_body_with_nothing_to_train_is_refused() -> None:
    def build() -> nn.Module:
        layers = OrderedDict(first=nn.Linear(6, 5), act=nn.Tanh(), act2=nn.Tanh())
        return nn.Sequential(layers | OrderedDict(out=nn.Linear(5, 3)))

    with pytest.raises(CutError, match="nothing is trained"):
        begin(tiny.task(build=build), "u_shaped")


def test_batch_norm_in_a_tail_is_refused() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                first=nn.Linear(6, 5),
                act=nn.Tanh(),
                hidden=nn.Linear(5, 4),
                norm=nn.BatchNorm1d(4),
                out=nn.Linear(4, 3),
            )
        )

    with pytest.raises(CutError, match="BatchNorm in train mode"):
        begin(tiny.task(build=build), "u_shaped", tail="hidden")
    # Behind it the tail is one layer, and its running statistics are the server's own.
    trial = train(tiny.task(build=build), "u_shaped", **ROUND)
    assert equal(trial.model, train(tiny.task(build=build), "ho_sfl", **ROUND).model)


def lies(name: str, factor: float) -> Fault:
    def change(content: RecordDict) -> RecordDict:
        own = values(content["arrays"][name])  # type: ignore[arg-type]
        return changed(content, {name: (own * np.float32(factor)).astype(np.float32)})

    return Fault("change", {2}, types="tail", change=change)


@pytest.mark.parametrize("name", ["gradients", AT_TAIL])
def test_a_gradient_that_is_no_number_is_refused_and_the_others_train(name: str) -> None:
    trial = train(tiny.task(), "u_shaped", [lies(name, np.nan)], **ROUND)
    assert trial.total("rejected") == 4
    assert [record.replies for record in trial.strategy.records[1:]] == [3] * 4
    assert all(bool(torch.isfinite(value).all()) for value in trial.model.values())


@pytest.mark.parametrize("name", ["gradients", AT_TAIL])
def test_gradients_out_of_all_bounds_are_refused(name: str) -> None:
    trial = train(tiny.task(), "u_shaped", [lies(name, 1e6)], **ROUND)
    assert trial.total("rejected") == 4
    assert "gradients at" in trial.notes
    assert all(bool(value.abs().max() < 10) for value in trial.model.values())


def test_gradients_of_another_shape_are_refused() -> None:
    def change(content: RecordDict) -> RecordDict:
        return changed(content, {"gradients": np.ones((4, 9), np.float32)})

    trial = train(
        tiny.task(), "u_shaped", [Fault("change", {2}, types="tail", change=change)], **ROUND
    )
    assert trial.total("rejected") == 4
    assert "gradients of shape" in trial.notes


def test_a_client_that_does_not_answer_for_its_tail_is_left_out() -> None:
    trial = train(tiny.task(), "u_shaped", [Fault("raise", {1}, {2}, "tail")], **ROUND)
    assert [record.replies for record in trial.strategy.records] == [0, 4, 3, 4, 4]


def test_the_gradient_at_the_features_tells_the_label_to_whoever_knows_the_tail() -> None:
    """What docs/privacy.md says of this method: not sent is not hidden."""
    client = node(40)
    tail, h, y = at(client)
    _, rows, _ = backprop(client, tail, h, y, (1, 0))
    weight = dict(tail.named_parameters())["out.weight"].detach().numpy()
    at_outputs = rows @ np.linalg.pinv(weight)
    # Of p - e_y, which sums to 0, the label's is the one negative number.
    assert (at_outputs.argmin(axis=1) == y.numpy()).all()


def test_a_run_goes_on_from_a_checkpoint_to_the_bit() -> None:
    whole = train(tiny.task(), "u_shaped", **ROUND)
    first = begin(tiny.task(), "u_shaped", **{**ROUND, "rounds": 2})
    start(first)
    tensors, plain = first.strategy.checkpoint()
    rest = begin(tiny.task(), "u_shaped", **ROUND)
    rest.strategy.resume(tensors, plain)
    start(rest)
    assert equal(rest.model, whole.model)


def test_forwards_leave_padding_of_texts_as_it_is() -> None:
    """A tail of texts tells padding by rows of zeros, which probing must not fill."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=8, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2ForSequenceClassification(config)
    parts = cut_tail(model, "block:1", pad=0)
    ids = torch.randint(3, 50, (4, 5), generator=torch.Generator().manual_seed(0))
    ids[1:, 3:] = 0
    with torch.no_grad():
        h = parts.body(cut(model, "block:1", pad=0).client(ids)).numpy()
    client, y = node(4), torch.tensor([0, 1, 1, 0])
    _, exact, _ = backprop(client, parts.tail, h, y, (1, 0))
    _, rows, _ = forwards(client, parts.tail, h, y, (1, 0), probes=5 * 8)
    assert not rows[1:, 3:].any() and not exact[1:, 3:].any()
    np.testing.assert_allclose(rows, exact, atol=0.05 * float(np.abs(exact).max()))
