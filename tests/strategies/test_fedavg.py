from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.clients import fedavg
from sfl_flower.data import batch_indices, client_key, steps_per_epoch
from sfl_flower.errors import ConfigError
from sfl_flower.strategies.fedavg import FedAvgSettings
from sfl_flower.wire.fedavg import FullReply, FullRequest
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import begin, equal, flat, start, train

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01, fused=True),
}
OPTIONS: dict[str, Any] = {
    "client_lr": 0.1,
    "client_momentum": 0.9,
    "client_weight_decay": 0.01,
}


def centralised(
    first: dict[str, Tensor], share: Any, rounds: int, steps: int, optimizer: Any, fresh: bool
) -> dict[str, Tensor]:
    """Train the whole model on one client's batches with torch's optimisers."""
    model = tiny.model()
    model.load_state_dict(first)
    made = optimizer(model.parameters())
    for round in range(1, rounds + 1):
        if fresh:
            made = optimizer(model.parameters())
        for step in range(steps):
            rows = batch_indices(client_key(0, 0), round, step, len(share), 4).copy()
            loss = nn.functional.cross_entropy(model(share.x[rows]), share.y[rows])
            made.zero_grad()
            loss.backward()
            made.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("state", ["fresh", "kept"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_client_is_centralised_training_to_the_bit(optimizer: str, state: str) -> None:
    share = tiny.samples(10)
    trial = begin(
        tiny.task([share]),
        "fedavg",
        clients=1,
        rounds=3,
        local_steps=4,
        client_optimizer=optimizer,
        client_state=state,
        **OPTIONS,
    )
    expected = centralised(trial.model, share, 3, 4, OPTIMIZERS[optimizer], state == "fresh")
    assert equal(start(trial).model, expected)


def test_kept_state_differs_from_fresh() -> None:
    share = [tiny.samples(10)]
    fresh, kept = (
        train(tiny.task(share), "fedavg", clients=1, client_state=state)
        for state in ("fresh", "kept")
    )
    assert not equal(fresh.model, kept.model)


@pytest.mark.parametrize("mean", ["uniform", "samples"])
def test_the_whole_model_is_the_mean_of_clients_that_trained_alone(mean: str) -> None:
    """Clients whose halves were one object would train it one after another."""
    shares = [tiny.samples(1, 1), tiny.samples(3, 2)]
    options: dict[str, Any] = {"rounds": 1, "clients": 2, "local_steps": 3, "client_lr": 0.3}
    alone = [train(tiny.task([s, s]), "fedavg", **options).model for s in shares]
    # Batches are drawn for each partition; shares below a batch give the same one to both.
    both = train(tiny.task(shares), "fedavg", mean=mean, **options).model
    part = 0.5 if mean == "uniform" else 0.25
    for name, value in both.items():
        expected = part * alone[0][name] + (1 - part) * alone[1][name]
        assert torch.allclose(value, expected, atol=1e-6), name
        assert not torch.allclose(alone[0][name], alone[1][name], atol=1e-3)


def test_the_tails_of_different_clients_are_different_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, replies = fedavg.train, []

    def watched(node: Any, request: FullRequest) -> FullReply:
        replies.append(own(node, request))
        return replies[-1]

    monkeypatch.setattr(fedavg, "train", watched)
    trial = train(tiny.task(), "fedavg", rounds=1)
    packed = [reply.weights["float32"] for reply in replies]
    assert len({array.ctypes.data for array in packed}) == len(packed) == 4
    assert len({array.tobytes() for array in packed}) == 4
    server = trial.strategy.server.module.state_dict()
    assert set(server) == set(trial.model) - set(tiny.CLIENT_NAMES)


def test_duplicated_clients_change_nothing() -> None:
    share = tiny.samples(1)
    options: dict[str, Any] = {"rounds": 3, "local_steps": 4}
    one = train(tiny.task([share]), "fedavg", clients=1, **options)
    four = train(tiny.task([share] * 4), "fedavg", clients=4, **options)
    names = sorted(one.model)
    assert torch.allclose(flat(one.model, names), flat(four.model, names), rtol=0, atol=1e-7)


def test_an_epoch_is_every_sample_once() -> None:
    shares = [tiny.samples(n, n) for n in (3, 4, 10)]
    trial = train(tiny.task(shares), "fedavg", clients=3, rounds=2)
    assert [record.samples for record in trial.strategy.records] == [0, 17, 34]
    asked = [content["config"]["steps"] for kind, _, content in trial.grid.asked if kind != "join"]
    assert asked == [1, 1, 3] * 2


def test_batches_follow_the_clients_own_samples() -> None:
    assert [FedAvgSettings().batches(n, 4) for n in (1, 4, 9, 10)] == [1, 1, 2, 3]
    assert FedAvgSettings().batches(9, 4) == steps_per_epoch(9, 4)
    assert FedAvgSettings(local_steps=7).batches(9, 4) == 7


def test_a_dropped_client_is_left_out_of_the_mean() -> None:
    share, other = tiny.samples(3, 1), tiny.samples(3, 2)
    options: dict[str, Any] = {"rounds": 1, "local_steps": 2}
    faulty = train(
        tiny.task([share, share, other]), "fedavg", [Fault("drop", {2})], clients=3, **options
    )
    without = train(tiny.task([share, share]), "fedavg", clients=2, **options)
    assert equal(faulty.model, without.model)
    (record,) = faulty.strategy.records[1:]
    assert (record.replies, record.failures, record.samples) == (2, 1, 2 * 2 * 3)


def test_a_client_that_diverges_is_not_averaged() -> None:
    def poison(content: Any) -> Any:
        weights = values(content["arrays"]["weights.float32"]).copy()
        weights[-1] = float("nan")
        return changed(content, arrays={"weights.float32": weights})

    def more(content: Any) -> Any:
        return changed(content, metrics={"num-examples": 9})

    def other(content: Any) -> Any:
        weights = values(content["arrays"]["weights.float32"])[1:].copy()
        return changed(content, arrays={"weights.float32": weights})

    faults = [
        Fault("change", {client}, {client + 1}, change=change)
        for client, change in enumerate((poison, more, other))
    ]
    trial = train(tiny.task(), "fedavg", faults, rounds=3, local_steps=2)
    records = trial.strategy.records[1:]
    assert [(r.replies, r.rejected) for r in records] == [(3, 1)] * 3
    for note in (
        "not finite",
        "it says 9 samples; 2 steps of this client are 8",
        "run different models",
    ):
        assert note in trial.notes
    assert trial.strategy.ledger.samples == 3 * 3 * 8


def test_batch_norm_statistics_are_averaged_and_batches_counted() -> None:
    problem = tiny.task(build=tiny.with_batch_norm)
    trial = begin(problem, "fedavg", rounds=1, local_steps=2)
    before = trial.model
    after = start(trial).model
    assert int(after["norm.num_batches_tracked"]) == int(after["norm2.num_batches_tracked"]) == 2
    assert not torch.equal(before["norm2.running_mean"], after["norm2.running_mean"])


def test_the_loss_of_a_round_is_the_mean_over_its_batches() -> None:
    share = tiny.samples(4)
    trial = begin(tiny.task([share]), "fedavg", clients=1, rounds=1)
    model = tiny.model()
    model.load_state_dict(trial.model)
    expected = float(nn.functional.cross_entropy(model(share.x), share.y).detach())
    assert start(trial).strategy.records[1].loss == pytest.approx(expected, rel=1e-6)


def test_it_learns() -> None:
    trial = train(tiny.task(), "fedavg", rounds=8, client_lr=0.2)
    first, last = (trial.strategy.records[i].metrics["loss"] for i in (0, -1))
    assert last < first - 0.1


def test_clients_report_memory_and_operations() -> None:
    trial = train(tiny.task(), "fedavg", rounds=2, local_steps=2)
    weights = 6 * 5 + 5 * 4 + 4 * 3
    # Forward, and backward to the weights and, but in the first layer, to the inputs.
    assert trial.strategy.ledger.client_flops == 2 * (3 * weights - 6 * 5)
    assert trial.strategy.ledger.client_peak_bytes > 4 * weights


def head() -> nn.Module:
    model = tiny.model()
    model.get_submodule("first").requires_grad_(False)
    return model


def test_fixed_parameters_keep_their_bits() -> None:
    trial = begin(tiny.task(build=head), "fedavg", rounds=2)
    before = trial.model
    after = start(trial).model
    assert trial.total("replies") == 8
    assert all(torch.equal(before[name], after[name]) for name in tiny.CLIENT_NAMES)
    assert not torch.equal(before["out.weight"], after["out.weight"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local_steps": -1}, "local_steps is -1"),
        ({"client_momentum": 1.0}, r"client_momentum is 1\.0; it must be in \[0, 0\.9999\]"),
        ({"client_lr": -0.1}, "client_lr is -0.1; it must be in"),
        ({"client_optimizer": "momentum"}, "one of sgd, adam, adamw"),
        ({"client_state": "lost"}, "one of fresh, kept"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FedAvgSettings(**options)
