"""MU-SplitFed: its round by hand, and what it does when clients fail."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.calls import CallCounter
from sfl_flower.clients import mu_splitfed as client
from sfl_flower.data import batch_indices, client_key, model_seed
from sfl_flower.errors import ConfigError, CutError, TrainingError, WireError
from sfl_flower.server.forward_only import ForwardOnlyTrainer
from sfl_flower.strategies import mu_splitfed as server
from sfl_flower.strategies.mu_splitfed import MUSplitFedSettings
from sfl_flower.zo import run_key
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.strategies import zo_half
from tests.tiny import begin, equal, flat, start, train

METHOD = "mu_splitfed"


@pytest.mark.parametrize("steps", [1, 3])
def test_three_forwards_up_one_scalar_down_and_2_tau_plus_2_on_the_server(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = zo_half.server_counters(monkeypatch)
    problem = tiny.task(clients=2)
    trial = begin(problem, METHOD, clients=2, rounds=1, server_steps=steps)
    counters.clear()  # the copy that the check made
    with CallCounter(zo_half.client_module(problem)) as counter:
        start(trial)
    assert (counter.forwards, counter.backwards) == (2 * 3, 0)
    assert [(c.forwards, c.backwards) for c in counters] == [(2 * steps + 2, 0)] * 2
    forwards = [c for kind, _, c in trial.grid.replies if kind == "forward"]
    scalars = [c for kind, _, c in trial.grid.requests if kind == "step"]
    assert [set(c["arrays"]) for c in forwards] == [{"anchor", "plus", "minus", "y"}] * 2
    assert [list(c["arrays"]) for c in scalars] == [["scalar"]] * 2
    assert [values(c["arrays"]["scalar"]).size for c in scalars] == [1, 1]


def by_hand(problem: Any, share: Any, settings: MUSplitFedSettings) -> tuple[Tensor, Tensor]:
    """Return both halves, flat, after one client's local step, from the method's description."""
    halves = problem.build(model_seed(0))
    rows = batch_indices(client_key(0, 0), 1, 0, len(share), 4).copy()
    x, y, mu = share.x[rows], share.y[rows], settings.mu
    theta_c, theta_s = zo_half.flat(halves.client), zo_half.flat(halves.server)
    own = run_key("mu_splitfed client", client_key(0, 0))
    u = zo_half.direction(own, len(theta_c), law=settings.direction)

    def loss(theta: Tensor, z: Tensor) -> float:
        return float(functional.cross_entropy(zo_half.run_at(halves.server, theta, z), y))

    with torch.no_grad():
        anchor, plus, minus = (
            zo_half.run_at(halves.client, theta_c + c * u, x) for c in (0.0, mu, -mu)
        )
        key = run_key("mu_splitfed server", 0)
        for step in range(settings.server_steps):
            w = zo_half.direction(key, len(theta_s), step, law=settings.direction)
            delta = loss(theta_s + mu * w, anchor) - loss(theta_s - mu * w, anchor)
            theta_s = theta_s - settings.server_zo_lr * delta / (2 * mu) * w
        delta = float(np.float32(loss(theta_s, plus) - loss(theta_s, minus)))
        return theta_c - settings.client_lr * delta / (2 * mu) * u, theta_s


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_with_a_global_rate_of_1_one_client_is_the_local_step(law: str) -> None:
    share = tiny.samples(10)
    problem = tiny.task([share])
    options: dict[str, Any] = {
        "server_steps": 3,
        "server_zo_lr": 0.2,
        "client_lr": 0.3,
        "global_lr": 1.0,
        "mu": 0.01,
        "direction": law,
    }
    trial = begin(problem, METHOD, clients=1, rounds=1, **options)
    before = trial.model
    theta_c, theta_s = by_hand(problem, share, MUSplitFedSettings(**options))
    start(trial)
    names = sorted(set(before) - set(tiny.CLIENT_NAMES))
    for found, was, expected in (
        (flat(trial.model, tiny.CLIENT_NAMES), flat(before, tiny.CLIENT_NAMES), theta_c),
        (flat(trial.model, names), flat(before, names), theta_s),
    ):
        assert float((found - was).norm()) > 0.01
        assert torch.allclose(found, expected.double(), rtol=0, atol=1e-6)


def test_the_mean_of_one_client_is_the_client_to_the_bit() -> None:
    trial = train(tiny.task([tiny.samples(10)]), METHOD, clients=1, rounds=1, global_lr=1.0)
    (reply,) = (c for kind, _, c in trial.grid.replies if kind == "step")
    sent = values(reply["arrays"]["weights.float32"])
    assert flat(trial.model, tiny.CLIENT_NAMES).float().numpy().tobytes() == sent.tobytes()


def test_the_global_rate_is_how_far_both_halves_go() -> None:
    share = [tiny.samples(10)]
    models = {
        rate: train(tiny.task(share), METHOD, clients=1, rounds=1, global_lr=rate).model
        for rate in (0.0, 0.5, 1.0)
    }
    initial = begin(tiny.task(share), METHOD, clients=1).model
    assert equal(models[0.0], initial)
    names = sorted(initial)
    middle = (flat(models[0.0], names) + flat(models[1.0], names)) / 2
    assert not equal(models[0.0], models[1.0])
    assert torch.allclose(flat(models[0.5], names), middle, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mean", ["uniform", "samples"])
def test_duplicated_clients_change_nothing(mean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zo_half.without_streams(monkeypatch, client, server)
    shares = [tiny.samples(1, seed) for seed in range(3)]  # one sample: one order of its batch
    options: dict[str, Any] = {"rounds": 2, "client_lr": 0.5, "server_zo_lr": 0.5, "mean": mean}
    once = train(tiny.task(shares), METHOD, clients=3, **options)
    twice = train(tiny.task(shares + shares), METHOD, clients=6, **options)
    names = sorted(once.model)
    step = flat(once.model, names) - flat(begin(tiny.task(shares), METHOD, clients=3).model, names)
    error = flat(once.model, names) - flat(twice.model, names)
    assert float(step.norm()) > 0.01
    assert float(error.norm()) <= 1e-5 * float(step.norm())


def test_a_mean_by_samples() -> None:
    shares = [tiny.samples(1, 1), tiny.samples(3, 2)]
    options: dict[str, Any] = {"rounds": 1, "clients": 2, "global_lr": 1.0, "server_zo_lr": 0.0}
    trial = train(tiny.task(shares), METHOD, mean="samples", **options)
    sent = {
        client: values(c["arrays"]["weights.float32"]).astype(np.float64)
        for kind, client, c in trial.grid.replies
        if kind == "step"
    }
    expected = 0.25 * sent[0] + 0.75 * sent[1]
    assert np.allclose(flat(trial.model, tiny.CLIENT_NAMES).numpy(), expected, rtol=0, atol=1e-7)
    assert trial.strategy.ledger.samples == 4


def test_perturbations_leave_nothing_behind() -> None:
    options: dict[str, Any] = {"client_lr": 0.0, "server_zo_lr": 0.0, "global_lr": 1.0}
    trial = begin(tiny.task(), METHOD, mu=0.1, **options)
    before = trial.model
    assert equal(start(trial).model, before)
    state = trial.grid.contexts[trial.grid.nodes[0]].state
    assert list(state) == ["terms"]


def test_buffers_of_the_server_half_move_once_a_batch_and_masks_are_those_of_the_batch() -> None:
    options: dict[str, Any] = {"build": zo_half.server_norm}
    trial = train(tiny.task(**options), METHOD, rounds=3, server_zo_lr=0.0, client_lr=0.0)
    assert int(trial.model["norm2.num_batches_tracked"]) == 3
    half = ForwardOnlyTrainer(trial.strategy)
    z, y = np.ones((4, tiny.CUT), np.float32), np.zeros(4, np.int64)
    first, again, other = (half.loss(z, y, draw) for draw in ((1, 0, 0), (1, 0, 0), (1, 0, 1)))
    assert first == again != other
    assert int(half.module.state_dict()["norm2.num_batches_tracked"]) == 5


def test_probes_of_the_server_half_are_not_rounded_by_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = ForwardOnlyTrainer(begin(tiny.task(), METHOD).strategy)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    seen: list[bool] = []
    half.module.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    half.loss(np.ones((4, tiny.CUT), np.float32), np.zeros(4, np.int64), (1, 0, 0))
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_a_client_that_breaks_off_is_left_out_and_not_booked() -> None:
    faults = [
        Fault("drop", {2}, {1}, types="step", times=1),
        Fault("forget", {1}, {2}, types="forward", times=1),
        Fault("raise", {3}, {2}, types="forward", times=1),
    ]
    trial = train(tiny.task(), METHOD, faults, rounds=3)
    records = trial.strategy.records[1:]
    assert [(r.replies, r.failures, r.rejected) for r in records] == [
        (3, 1, 0),
        (2, 2, 0),
        (4, 0, 0),
    ]
    assert [r.samples for r in records] == [12, 20, 36]
    assert "has no weights of round 2; it joins the next one" in trial.notes


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"plus": np.full((4, tiny.CUT), np.nan, np.float32)},
            "value in 'plus' that is not finite",
        ),
        ({"plus": np.ones((3, tiny.CUT), np.float32)}, "shapes .*, which must be equal"),
        ({"y": np.full(4, 7)}, "a label is 7, the task has classes 0 to 2"),
        ({"y": np.zeros(3, np.int64)}, "labels of shape"),
        ({n: np.ones((4, 9), np.float32) for n in ("anchor", "plus", "minus")}, "expected .n, 5."),
        (
            {n: np.ones((5, tiny.CUT), np.float32) for n in ("anchor", "plus", "minus")}
            | {"y": np.zeros(5, np.int64)},
            "a mini-batch of 5 samples, asked were at most 4",
        ),
    ],
)
def test_a_bad_reply_is_not_used_and_the_round_goes_on(arrays: Any, says: str) -> None:
    def damage(content: Any) -> Any:
        return changed(content, arrays=arrays)

    faults = [Fault("change", {1}, {1}, types="forward", change=damage)]
    trial = train(tiny.task(), METHOD, faults, rounds=2)
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(3, 1), (4, 0)]
    assert re.search(says, trial.notes), trial.notes
    assert all(torch.isfinite(value).all() for value in trial.model.values())


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        found = functional.cross_entropy(output, y)
        return found if len(y) > 2 else found * float("inf")

    shares = [tiny.samples(4), tiny.samples(2), tiny.samples(4, 1)]
    trial = train(tiny.task(shares, loss=loss), METHOD, clients=3, rounds=1)
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(2, 1)]
    assert "its loss is not finite" in trial.notes
    assert trial.strategy.ledger.samples == 8
    half = ForwardOnlyTrainer(trial.strategy)
    with pytest.raises(WireError, match="not finite"):
        half.loss(np.ones((2, tiny.CUT), np.float32), np.zeros(2, np.int64), (1, 0, 0))


def test_steps_that_are_not_finite_are_not_used() -> None:
    problem = tiny.task(loss=lambda output, y: output.double().pow(2).mean() * 1e200)
    trial = begin(problem, METHOD, rounds=1)
    before = trial.model
    with pytest.raises(TrainingError, match=r"No usable reply .* not finite in float32"):
        start(trial)
    assert equal(trial.model, before)


def test_what_forwards_cannot_train_is_refused() -> None:
    with pytest.raises(
        CutError, match=r"server half after 'act' cannot be trained by forwards: .*float32"
    ):
        begin(tiny.task(build=zo_half.double_server), METHOD)
    with pytest.raises(CutError, match="BatchNorm"):
        begin(tiny.task(build=tiny.with_batch_norm), METHOD)
    trial = train(tiny.task(build=tiny.with_batch_norm), METHOD, client_mode="eval", rounds=1)
    assert int(trial.model["norm.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"server_steps": 0}, "server_steps is 0"),
        ({"mu": 0.0}, r"mu is 0\.0; it must be in"),
        ({"server_zo_lr": -1.0}, "server_zo_lr is -1"),
        ({"client_lr": float("nan")}, "client_lr is nan"),
        ({"global_lr": -0.1}, "global_lr is -0.1"),
        ({"direction": "east"}, "direction is 'east'"),
        ({"client_mode": "odd"}, "client_mode is 'odd'"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MUSplitFedSettings(**options)


def test_a_round_is_one_mini_batch() -> None:
    assert MUSplitFedSettings().batches(1000, 10) == 1


def test_the_log_says_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("flwr")
    log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "flwr"):
            begin(tiny.task(), METHOD).strategy.summary()
    finally:
        log.removeHandler(caplog.handler)
    assert "A weak baseline" in caplog.text
