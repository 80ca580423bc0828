"""ZO-SFL: counts, the estimate, the steps of both sides, and clients that fail."""

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
from sfl_flower.clients import zo_sfl as client
from sfl_flower.data import batch_indices, client_key, model_seed
from sfl_flower.errors import ConfigError, CutError, TrainingError
from sfl_flower.strategies import zo_sfl as server
from sfl_flower.strategies.zo_sfl import ZOSFLSettings
from sfl_flower.zo import run_key
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.strategies import zo_half
from tests.tiny import CLIENT_NAMES, begin, equal, flat, start, train

METHOD = "zo_sfl"
SGD: dict[str, Any] = {"client_optimizer": "sgd", "client_weight_decay": 0.0}


def messages(log: Any, client: int = 0) -> list[Any]:
    return [content for kind, who, content in log if kind == "step" and who == client]


def scalars_of(trial: Any) -> list[np.ndarray]:
    """Return the scalars that client 0 was sent, step by step."""
    sent = messages(trial.grid.requests)
    return [values(c["arrays"]["scalars"]) for c in sent if "scalars" in c["arrays"]]


@pytest.mark.parametrize(("probes", "steps"), [(1, 2), (3, 1)])
def test_2p_uploads_2p_forwards_on_both_sides_and_p_scalars_a_step(
    probes: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = zo_half.server_counters(monkeypatch)
    problem = tiny.task(clients=2)
    trial = begin(problem, METHOD, clients=2, rounds=1, probes=probes, local_steps=steps)
    counters.clear()  # the copy that the check made
    with CallCounter(zo_half.client_module(problem)) as counter:
        start(trial)
    assert (counter.forwards, counter.backwards) == (2 * 2 * probes * steps, 0)
    assert [(c.forwards, c.backwards) for c in counters] == [(2 * probes * steps, 0)] * 2
    uploads = [c["arrays"] for c in messages(trial.grid.replies)]
    assert [a["z"].shape[0] for a in uploads[:-1]] == [2 * probes * 4] * steps
    assert [a["y"].shape[0] for a in uploads[:-1]] == [4] * steps
    assert list(uploads[-1]) == ["weights.float32"]
    assert [part.shape for part in scalars_of(trial)] == [(probes,)] * steps


def gradients(problem: Any, share: Any) -> tuple[Tensor, Tensor]:
    """Return autograd's gradients of both halves on the first batch, flat."""
    halves = problem.build(model_seed(0))
    rows = batch_indices(client_key(0, 0), 1, 0, len(share), 4).copy()
    theta = [zo_half.flat(half).requires_grad_() for half in (halves.client, halves.server)]
    z = zo_half.run_at(halves.client, theta[0], share.x[rows])
    loss = functional.cross_entropy(zo_half.run_at(halves.server, theta[1], z), share.y[rows])
    first, second = torch.autograd.grad(loss, theta)
    return first, second


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_a_scalar_is_the_derivative_along_both_directions(law: str) -> None:
    share, mu, probes = tiny.samples(4), 5e-3, 4
    problem = tiny.task([share])
    options: dict[str, Any] = {"mu": mu, "probes": probes, "direction": law}
    trial = train(problem, METHOD, clients=1, rounds=1, **options)
    (scalars,) = scalars_of(trial)
    parts = zip(gradients(problem, share), ("client", "server"), strict=True)
    expected = np.zeros(probes)
    for gradient, side in parts:
        key = run_key(f"zo_sfl {side}", client_key(0, 0) if side == "client" else 0)
        along = [zo_half.direction(key, len(gradient), 0, p, law) for p in range(probes)]
        expected += np.array([float(u.double() @ gradient.double()) for u in along])
    assert np.abs(expected).max() > 0.05
    assert np.allclose(scalars / (2 * mu), expected, rtol=2e-3, atol=5e-4)


def test_both_sides_step_along_the_scalars() -> None:
    share, mu, probes = tiny.samples(4), 0.01, 3
    problem = tiny.task([share])
    options: dict[str, Any] = {"mu": mu, "probes": probes, "client_lr": 0.3, "server_lr": 0.2}
    trial = begin(problem, METHOD, clients=1, rounds=1, **SGD, **options)
    before = trial.model
    start(trial)
    (scalars,) = scalars_of(trial)
    sides = (
        ("client", 0.3, list(CLIENT_NAMES)),
        ("server", 0.2, sorted(set(before) - set(CLIENT_NAMES))),
    )
    for side, lr, names in sides:
        step = flat(before, names) - flat(trial.model, names)
        key = run_key(f"zo_sfl {side}", client_key(0, 0) if side == "client" else 0)
        along = torch.stack([zo_half.direction(key, len(step), 0, p) for p in range(probes)])
        expected = lr * torch.from_numpy(scalars / (2 * mu * probes)).double() @ along.double()
        assert float(expected.norm()) > 1e-3
        assert torch.allclose(step, expected, rtol=0, atol=1e-6)


def test_the_servers_optimizer_is_the_runs() -> None:
    options: dict[str, Any] = {"clients": 1, "rounds": 1, "local_steps": 3, **SGD}
    share = [tiny.samples(4)]
    kinds: list[dict[str, Any]] = [
        {"server_optimizer": "sgd"},
        {"server_optimizer": "sgd", "server_momentum": 0.9},
        {"server_optimizer": "adam", "server_lr": 1e-3},
        {"server_optimizer": "adamw", "server_lr": 1e-3, "server_weight_decay": 0.5},
    ]
    found = [train(tiny.task(share), METHOD, **options, **kind).model for kind in kinds]
    assert all(not equal(a, b) for i, a in enumerate(found) for b in found[:i])
    # Adam's first step is the learning rate in every element.
    one = begin(tiny.task(share), METHOD, **{**options, "local_steps": 1}, **kinds[2])
    names = sorted(set(one.model) - set(CLIENT_NAMES))
    before = flat(one.model, names)
    step = (before - flat(start(one).model, names)).abs()
    assert torch.allclose(step, torch.full_like(step, 1e-3), rtol=1e-2)


def test_perturbations_leave_nothing_behind() -> None:
    options: dict[str, Any] = {"client_lr": 0.0, "server_lr": 0.0, "mu": 0.1, "probes": 3}
    trial = begin(tiny.task(), METHOD, **options)
    before = trial.model
    assert equal(start(trial).model, before)
    for content in messages(trial.grid.replies):
        if "weights.float32" in content["arrays"]:
            sent = values(content["arrays"]["weights.float32"])
            assert sent.tobytes() == flat(before, CLIENT_NAMES).float().numpy().tobytes()


def test_buffers_of_the_server_half_move_once_a_batch() -> None:
    trial = train(tiny.task(build=zo_half.server_norm), METHOD, rounds=2, local_steps=3, probes=2)
    assert int(trial.model["norm2.num_batches_tracked"]) == 6


@pytest.mark.parametrize("mean", ["uniform", "samples"])
def test_duplicated_clients_change_nothing(mean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zo_half.without_streams(monkeypatch, client, server)
    shares = [tiny.samples(1, seed) for seed in range(3)]  # one sample: one order of its batch
    options: dict[str, Any] = {"rounds": 2, "client_lr": 0.5, "mean": mean, "local_steps": 2}
    once = train(tiny.task(shares), METHOD, clients=3, **SGD, **options)
    twice = train(tiny.task(shares + shares), METHOD, clients=6, **SGD, **options)
    names = sorted(once.model)
    step = flat(once.model, names) - flat(begin(tiny.task(shares), METHOD, clients=3).model, names)
    error = flat(once.model, names) - flat(twice.model, names)
    assert float(step.norm()) > 0.01
    assert float(error.norm()) <= 1e-5 * float(step.norm())


def test_a_local_epoch_is_each_clients_own() -> None:
    shares = [tiny.samples(n, n) for n in (3, 8, 10)]
    trial = train(tiny.task(shares), METHOD, clients=3, rounds=2)
    assert [trial.grid.log["step", c] for c in range(3)] == [2 * n for n in (2, 3, 4)]
    assert trial.strategy.ledger.samples == 2 * (3 + 8 + 10)
    assert [r.replies for r in trial.strategy.records[1:]] == [3, 3]
    settings = ZOSFLSettings()
    assert [settings.batches(n, 4) for n in (3, 8, 10)] == [1, 2, 3]
    assert ZOSFLSettings(local_steps=7).batches(3, 4) == 7


def test_a_mean_by_samples() -> None:
    shares = [tiny.samples(1, 1), tiny.samples(3, 2)]
    trial = train(tiny.task(shares), METHOD, clients=2, rounds=1, mean="samples")
    sent = [messages(trial.grid.replies, c)[-1]["arrays"]["weights.float32"] for c in (0, 1)]
    a, b = (part.numpy().astype(np.float64) for part in sent)
    found = flat(trial.model, CLIENT_NAMES).numpy()
    assert np.allclose(found, 0.25 * a + 0.75 * b, rtol=0, atol=1e-7)


def test_client_state_is_fresh_or_kept() -> None:
    whole = [tiny.samples(4)]
    options: dict[str, Any] = {"clients": 1, "server_lr": 0.0, "client_optimizer": "momentum"}
    fresh, kept = (
        train(tiny.task(whole), METHOD, rounds=3, client_state=state, **options)
        for state in ("fresh", "kept")
    )
    assert not equal(fresh.model, kept.model)
    states = [trial.grid.contexts[trial.grid.nodes[0]].state for trial in (fresh, kept)]
    assert [set(state) for state in states] == [{"terms"}, {"optimizer", "terms"}]


def test_a_client_that_breaks_off_is_left_out_and_not_booked() -> None:
    faults = [
        Fault("raise", {3}, {1}, times=1),
        Fault("forget", {1}, {2}, times=1),
        Fault("rollback", {2}, {2}, times=1),
    ]
    trial = train(tiny.task(), METHOD, faults, rounds=3, local_steps=2)
    records = trial.strategy.records[1:]
    assert [(r.replies, r.failures) for r in records] == [(3, 1), (2, 2), (4, 0)]
    assert [r.samples for r in records] == [24, 40, 72]
    assert "cannot go on with step 1 of round 2" in trial.notes


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.full((8, tiny.CUT), np.nan, np.float32)}, "value in 'z' that is not finite"),
        ({"z": np.ones((4, tiny.CUT), np.float32)}, "smashed data of shape"),
        ({"z": np.ones((16, tiny.CUT), np.float32)}, "16 rows of smashed data for 4 samples"),
        ({"z": np.ones((8, 9), np.float32)}, "expected .n, 5."),
        ({"y": np.full(4, -1)}, "a label is -1, the task has classes 0 to 2"),
    ],
)
def test_a_bad_reply_is_not_used_and_the_round_goes_on(arrays: Any, says: str) -> None:
    def damage(content: Any) -> Any:
        return changed(content, arrays=arrays)

    faults = [Fault("change", {1}, {1}, times=1, change=damage)]
    trial = train(tiny.task(), METHOD, faults, rounds=2, local_steps=2)
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(3, 1), (4, 0)]
    assert re.search(says, trial.notes), trial.notes
    assert all(torch.isfinite(value).all() for value in trial.model.values())


def test_a_loss_that_is_not_finite_costs_its_client_the_round_alone() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        found = functional.cross_entropy(output, y)
        return found if len(y) > 2 else found * float("inf")

    shares = [tiny.samples(4), tiny.samples(6), tiny.samples(4, 1)]  # the second ends with 2
    trial = train(tiny.task(shares, loss=loss), METHOD, clients=3, rounds=1)
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(2, 1)]
    assert "its loss is not finite" in trial.notes
    assert trial.strategy.ledger.samples == 8


def test_loss_differences_too_large_for_a_step_are_not_used() -> None:
    problem = tiny.task(loss=lambda output, y: output.double().pow(2).mean() * 1e200)
    trial = begin(problem, METHOD, rounds=1)
    before = trial.model
    with pytest.raises(TrainingError, match=r"No usable reply .*a step that is not finite"):
        start(trial)
    assert equal(trial.model, before)


def test_a_server_step_that_is_not_finite_is_not_used() -> None:
    trial = train(tiny.task(), METHOD, rounds=1, server_lr=1e38, local_steps=3)
    assert trial.total("rejected") >= 1
    assert "not finite" in trial.notes
    assert all(torch.isfinite(value).all() for value in trial.model.values())


def test_what_forwards_cannot_train_is_refused() -> None:
    with pytest.raises(CutError, match="server half after 'act' cannot be trained by forwards"):
        begin(tiny.task(build=zo_half.double_server), METHOD)
    with pytest.raises(CutError, match="BatchNorm"):
        begin(tiny.task(build=tiny.with_batch_norm), METHOD)
    trial = train(tiny.task(build=tiny.with_batch_norm), METHOD, client_mode="eval", rounds=1)
    assert int(trial.model["norm.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local_steps": -1}, "local_steps is -1"),
        ({"probes": 0}, r"probes is 0; it must be in \[1, 4096\]"),
        ({"mu": float("inf")}, r"mu is inf; it must be in"),
        ({"direction": "east"}, "direction is 'east'"),
        ({"client_optimizer": "lion"}, "one of sgd, momentum, adam, adamw"),
        ({"client_lr": -0.1}, "client_lr is -0.1"),
        ({"client_momentum": 1.0}, r"client_momentum is 1\.0"),
        ({"client_weight_decay": 1e4}, "client_weight_decay is 10000"),
        ({"client_state": "lost"}, "one of fresh, kept"),
        ({"client_mode": "odd"}, "client_mode is 'odd'"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ZOSFLSettings(**options)


def test_the_log_says_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("flwr")
    log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "flwr"):
            begin(tiny.task(), METHOD).strategy.summary()
    finally:
        log.removeHandler(caplog.handler)
    assert "A weak baseline" in caplog.text
