from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.data import batch_indices, client_key
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.server.mean import Mean
from sfl_flower.server.settings import LocalStepsSettings
from tests import tiny
from tests.local_grid import Fault, kind_of, values
from tests.tiny import begin, equal, flat, start, train

METHODS = ("splitfed_v1", "splitfed_v2")


def centralised(
    trial: Any, share: Any, rounds: int, steps: int, client: Any, server: Any
) -> dict[str, Tensor]:
    """Train the whole model on one client's batches with torch's optimisers."""
    model = tiny.model()
    model.load_state_dict(trial.model)
    halves = (
        [p for n, p in model.named_parameters() if n.startswith("first")],
        [p for n, p in model.named_parameters() if not n.startswith("first")],
    )
    for round in range(1, rounds + 1):
        optimizers = [client(halves[0]), server(halves[1])]
        for step in range(steps):
            rows = batch_indices(client_key(0, 0), round, step, len(share), 4).copy()
            loss = nn.functional.cross_entropy(model(share.x[rows]), share.y[rows])
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_one_client_is_centralised_training(method: str, optimizer: str) -> None:
    share = tiny.samples(10)
    trial = begin(
        tiny.task([share]),
        method,
        clients=1,
        rounds=3,
        local_steps=4,
        client_optimizer=optimizer,
        client_lr=0.1,
        client_momentum=0.9,
        client_weight_decay=0.01,
        server_lr=0.2,
    )

    def client(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
        kind: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
        adam: torch.optim.Optimizer = kind(parameters, lr=0.1, weight_decay=0.01)
        return adam

    expected = centralised(
        trial, share, 3, 4, client, lambda parameters: torch.optim.SGD(parameters, lr=0.2)
    )
    start(trial)
    for name, value in expected.items():
        assert torch.allclose(trial.model[name], value, rtol=1e-5, atol=1e-6), name


def test_v1_and_v2_agree_to_the_bit_for_one_client() -> None:
    share = [tiny.samples(10)]
    v1, v2 = (train(tiny.task(share), m, clients=1, local_steps=3) for m in METHODS)
    assert equal(v1.model, v2.model)


def test_two_clients_differ_between_v1_and_v2() -> None:
    v1, v2 = (train(tiny.task(), m) for m in METHODS)
    assert not equal(v1.model, v2.model)


@pytest.mark.parametrize("method", METHODS)
def test_h_local_steps_are_h_plus_1_exchanges(method: str) -> None:
    trial = train(tiny.task(), method, rounds=2, local_steps=3)
    assert trial.grid.log["step", 0] == 2 * 4
    assert trial.strategy.ledger.samples == 2 * 3 * 4 * 4


def test_an_epoch_of_5000_samples_is_20_batches() -> None:
    assert LocalStepsSettings(local_steps=0).batches(5000, 256) == 20
    assert LocalStepsSettings(local_steps=3).batches(5000, 256) == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_local_epoch_has_as_many_steps_as_the_client_has_batches(method: str) -> None:
    """Shares of 10, 4, 1 and 6 samples at batch 4: 3, 1, 1 and 2 steps, the last ones short."""
    shares = [tiny.samples(n, seed) for seed, n in enumerate((10, 4, 1, 6))]
    trial = train(tiny.task(shares), method, rounds=2, local_steps=0, mean="samples")
    ledger = trial.strategy.ledger
    assert [trial.grid.log["step", client] for client in range(4)] == [8, 4, 4, 6]
    assert (ledger.samples, trial.total("replies"), trial.total("rejected")) == (42, 8, 0)
    assert ledger.up["smashed"] == ledger.down["gradients"] == 42 * 4 * tiny.CUT
    assert ledger.up["weights"] == ledger.down["weights"] == 8 * 4 * tiny.CLIENT_SIZE


def test_an_epoch_of_equal_shares_is_so_many_steps_to_the_bit() -> None:
    epoch, steps = (
        train(tiny.task(each=10), "splitfed_v2", local_steps=h, client_optimizer="adam")
        for h in (0, 3)
    )
    assert equal(epoch.model, steps.model)


def test_a_client_of_fewer_steps_sends_its_weights_and_counts_by_samples() -> None:
    options: dict[str, Any] = {"rounds": 1, "local_steps": 0, "server_lr": 0.0}
    shares = [tiny.samples(8, 1), tiny.samples(2, 2)]
    alone = train(tiny.task(shares[:1]), "splitfed_v1", clients=1, **options)
    both = train(tiny.task(shares), "splitfed_v1", clients=2, mean="samples", **options)
    sent = {
        client: values(content["arrays"]["weights.float32"])
        for _, client, content in both.grid.replies
        if "weights.float32" in content["arrays"]
    }
    assert list(sent) == [1, 0]  # client 1 is done a step earlier
    np.testing.assert_array_equal(sent[0], flat(alone.model, tiny.CLIENT_NAMES).numpy())
    mean = flat(both.model, tiny.CLIENT_NAMES).numpy()
    np.testing.assert_allclose(mean, 0.8 * sent[0] + 0.2 * sent[1], atol=1e-7)


def test_a_client_has_its_gradient_before_the_server_takes_the_next_batch() -> None:
    trial = begin(tiny.task(), "splitfed_v2", rounds=1, local_steps=2)
    events: list[tuple[str, int]] = []
    deliver, gradients = trial.grid.deliver, trial.strategy.server.gradients

    def delivered(message: Any) -> Any:
        if kind_of(message) == "step":
            client = trial.grid.nodes.index(message.metadata.dst_node_id)
            events.append(("request", client))
        return deliver(message)

    def used(z: np.ndarray, y: np.ndarray, draw: tuple[int, int, int]) -> Any:
        events.append(("batch", draw[1]))
        return gradients(z, y, draw)

    trial.grid.deliver, trial.strategy.server.gradients = delivered, used  # type: ignore[method-assign]
    start(trial)
    assert [kind for kind, _ in events] == ["request"] * 4 + ["batch", "request"] * 8
    assert all(events[i][1] == events[i + 1][1] for i in range(4, 20, 2))


def test_identical_clients_are_one_client_in_v1() -> None:
    share = tiny.samples(1)
    one = train(tiny.task([share]), "splitfed_v1", clients=1, rounds=2)
    four = train(tiny.task([share] * 4), "splitfed_v1", clients=4, rounds=2)
    names = sorted(one.model)
    assert torch.allclose(flat(one.model, names), flat(four.model, names), atol=1e-7)


def test_kept_client_state_differs_from_fresh_and_is_kept() -> None:
    share = tiny.samples(10)
    options: dict[str, Any] = {
        "clients": 1, "rounds": 3, "client_lr": 0.1, "client_momentum": 0.9, "server_lr": 0.0
    }  # fmt: skip
    fresh = train(tiny.task([share]), "splitfed_v2", **options)
    kept = train(tiny.task([share]), "splitfed_v2", client_state="kept", **options)
    assert not equal(fresh.model, kept.model)
    # With the state kept, three rounds of one step are one round of three, on the same data.
    whole = tiny.samples(4)
    a = train(tiny.task([whole]), "splitfed_v2", client_state="kept", **options)
    b = train(tiny.task([whole]), "splitfed_v2", **{**options, "rounds": 1}, local_steps=3)
    names = sorted(a.model)
    assert torch.allclose(flat(a.model, names), flat(b.model, names), rtol=1e-5, atol=1e-6)


def test_batch_norm_counts_each_batch_once() -> None:
    trial = train(
        tiny.task(build=tiny.with_batch_norm), "splitfed_v2", rounds=2, local_steps=3, clients=1
    )
    assert int(trial.model["norm.num_batches_tracked"]) == 6
    assert int(trial.model["norm2.num_batches_tracked"]) == 6


def test_a_mean_of_states_by_hand() -> None:
    states = [
        {"a": torch.tensor([1.0, 3.0]), "n": torch.tensor(2)},
        {"a": torch.tensor([5.0, 3.0]), "n": torch.tensor(5)},
    ]
    mean = Mean().states(states, [3.0, 1.0])
    assert mean["a"].tolist() == [2.0, 3.0]
    assert (int(mean["n"]), mean["n"].dtype) == (3, torch.int64)


def test_a_sample_weighted_mean_of_clients() -> None:
    shares = [tiny.samples(1, 1), tiny.samples(3, 2)]
    alone = [
        train(tiny.task([s, s]), "splitfed_v1", rounds=1, clients=2, server_lr=0.0).model
        for s in shares
    ]
    both = train(
        tiny.task(shares), "splitfed_v1", rounds=1, clients=2, server_lr=0.0, mean="samples"
    ).model
    # Shares of 1 and 3 samples; a batch is at most 4, so each client runs all of its own.
    expected = 0.25 * alone[0]["first.weight"] + 0.75 * alone[1]["first.weight"]
    assert torch.allclose(both["first.weight"], expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_client_that_breaks_off_is_left_out_of_the_mean(method: str) -> None:
    faults = [Fault("drop", {2}, {1}, times=1), Fault("raise", {3}, {2}, times=1)]
    trial = train(tiny.task(), method, faults, rounds=3, local_steps=2)
    assert [record.failures for record in trial.strategy.records] == [0, 1, 1, 0]
    assert [record.replies for record in trial.strategy.records] == [0, 3, 3, 4]


def test_a_client_that_forgets_within_a_round_is_left_out_and_joins_the_next() -> None:
    faults = [Fault("forget", {1}, {1}, times=1)]
    trial = train(tiny.task(), "splitfed_v2", faults, rounds=2, local_steps=2)
    assert [record.replies for record in trial.strategy.records] == [0, 3, 4]
    assert "cannot go on with step 1" in trial.notes


def parameterless() -> nn.Module:
    return nn.Sequential(nn.Tanh(), nn.Linear(tiny.FEATURES, tiny.CLASSES))


def fixed() -> nn.Module:
    model = tiny.model()
    model.get_submodule("first").requires_grad_(False)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("build", "cut"), [(parameterless, "0"), (fixed, "act")])
def test_a_client_half_with_nothing_to_train_is_refused(
    method: str, build: Callable[[], nn.Module], cut: str
) -> None:
    with pytest.raises(CutError, match=r"has no trainable parameter.*later layer, or .*'frozen'"):
        begin(tiny.task(build=build, cut=cut), method)


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
        LocalStepsSettings(**options)


def test_order_of_v2_follows_the_seed_and_holds_everyone() -> None:
    strategy = begin(tiny.task(), "splitfed_v2").strategy
    members = list(range(10))
    orders = [strategy.order(r, members) for r in range(8)]
    assert all(sorted(order) == members for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert np.array_equal(orders[0], strategy.order(0, members))
