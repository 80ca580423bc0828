from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.data import batch_indices, client_key, generator
from sfl_flower.errors import ConfigError
from sfl_flower.server import probing as probing_module
from sfl_flower.server.trainer import Gradients, Trainer
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.task import Samples
from sfl_flower.training.schedules import scheduled
from sfl_flower.zo import Directions, ParameterVector, Probing, surrogate_scalars
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import CLIENT_NAMES, CLIENT_SIZE, Trial, begin, equal, flat, start, train


class Row:
    """A direction that is given: a row of a matrix."""

    def __init__(self, values: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.values, self.shapes = values, shapes

    def times(self, scale: float) -> Row:
        return Row(scale * self.values, self.shapes)

    def add_stretches(self, out: Tensor, base: Tensor, stretches: tuple[tuple[int, int]]) -> None:
        moved = base + self.values
        out.copy_(torch.cat([moved[start:stop] for start, stop in stretches]))


def projected(half: nn.Module, x: Tensor, lam: Tensor, mu: float, seed: int) -> Tensor:
    """Return g of d probes along √d times an orthonormal basis."""
    vector = ParameterVector(half)
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((vector.size, vector.size)))[0]
    rows = torch.from_numpy(basis * vector.size**0.5).float()
    directions: list[Any] = [Row(row, vector.shapes) for row in rows]
    with torch.no_grad():
        z = half(x)
    v = surrogate_scalars(lambda: half(x), vector, directions, Probing(mu=mu), z, lam)
    return (v.double() / mu) @ rows.double() / len(rows)


def problem(linear: bool) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a client half, a batch, λ, and autograd's client gradient."""
    halves = tiny.task().build(3)
    half = nn.Sequential(halves.client.get_submodule("first")) if linear else halves.client
    data = tiny.samples(8, 5)
    z = half(data.x)
    cut = z.detach().requires_grad_()
    loss = functional.cross_entropy(halves.server(cut), data.y)
    (lam,) = torch.autograd.grad(loss, cut)
    _, parameters = zip(*sorted(half.named_parameters()), strict=True)
    exact = torch.autograd.grad(z, parameters, lam)
    return half, data.x, lam, torch.cat([g.reshape(-1) for g in exact]).double()


@pytest.mark.parametrize("seed", range(3))
def test_projected_probes_give_autograds_client_gradient(seed: int) -> None:
    half, x, lam, exact = problem(linear=False)
    errors = [
        float((projected(half, x, lam, mu, seed) - exact).norm() / exact.norm())
        for mu in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[2] <= 3e-3
    # Curvature: the error is linear in μ until float32 ends it.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("mu", [10.0, 1.0, 0.1])
def test_probes_are_exact_for_a_client_linear_in_its_parameters(mu: float) -> None:
    half, x, lam, exact = problem(linear=True)
    assert float((projected(half, x, lam, mu, 0) - exact).norm() / exact.norm()) <= 1e-5


def journalled(trial: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean directional derivatives and directions of a shared one-entry journal."""
    journal = trial.strategy.mirror.journal
    (entry,) = journal.entries
    directions = [
        Directions(journal.header.run_key, journal.header.law, [(CLIENT_SIZE,)])
        .of(key)
        .values()
        .numpy()
        for key in entry.keys()
    ]
    return entry.coefficients.reshape(-1) * entry.probes, np.array(directions, np.float64)


def splitfed_gradient(problem: Any, **options: Any) -> Tensor:
    """Return the mean client gradient of a SplitFed round, from the step it takes."""
    trial = begin(problem, "splitfed_v1", rounds=1, client_lr=1.0, client_momentum=0.0, **options)
    before = flat(trial.model, CLIENT_NAMES)
    return before - flat(start(trial).model, CLIENT_NAMES)


def test_a_whole_round_journals_splitfeds_client_gradient() -> None:
    problem = tiny.task()
    probes = 4 * CLIENT_SIZE
    trial = train(
        problem, rounds=1, directions="shared", probes=probes, mu=1e-2, estimator="central"
    )
    derivatives, directions = journalled(trial)
    found = np.linalg.lstsq(directions, derivatives, rcond=None)[0]
    exact = splitfed_gradient(problem).numpy()
    assert np.linalg.norm(found - exact) <= 2e-3 * np.linalg.norm(exact)


def test_the_journalled_update_is_the_estimate_times_the_learning_rate() -> None:
    trial = begin(tiny.task(), rounds=1, probes=3, client_lr=0.5, directions="shared")
    before = flat(trial.model, CLIENT_NAMES)
    start(trial)
    derivatives, directions = journalled(trial)
    step = before - flat(trial.model, CLIENT_NAMES)
    expected = 0.5 * derivatives @ directions / 3
    assert np.allclose(step, expected, rtol=1e-4, atol=1e-8)
    assert np.abs(expected).max() > 1e-4


def test_clipping_scales_a_clients_scalars_to_the_norm() -> None:
    whole, clipped = (
        train(tiny.task(), rounds=1, probes=3, clip_norm=limit, minibatches=2)
        for limit in (0.0, 1e-3)
    )
    (free,), (held,) = (trial.strategy.mirror.journal.entries for trial in (whole, clipped))
    parts = [entry.coefficients.reshape(-1, 3) for entry in (free, held)]
    share = 1 / parts[0].size  # the mean over clients, steps and probes
    for one, two in zip(*parts, strict=True):
        assert np.sqrt(np.mean((two / share) ** 2)) == pytest.approx(1e-3, rel=1e-5)
        assert np.allclose(two / np.linalg.norm(two), one / np.linalg.norm(one), atol=1e-6)


@pytest.mark.parametrize("directions", ["shared", "own"])
def test_clients_probe_in_the_cone_that_the_journal_gives(directions: str) -> None:
    options: dict[str, Any] = {"cone": 0.6, "probes": 2, "directions": directions}
    one, two = (train(tiny.task(clients=2), clients=2, rounds=n, **options) for n in (1, 2))
    replica, journal = one.strategy.mirror.replica, two.strategy.mirror.journal
    half = tiny.task().build(0).client
    vector = ParameterVector(half)
    vector.load(replica.theta)
    key = journal.header.run_key
    asked = {
        client: (content["arrays"], content["config"])
        for kind, client, content in two.grid.asked
        if kind == "probe" and content["config"]["round"] == 2
    }
    scalars = {
        client: values(content["arrays"]["scalars"])
        for kind, client, content in two.grid.replies
        if kind == "probe" and content["config"]["round"] == 2
    }
    whole = tiny.samples(24)
    assert len(scalars) == 2
    for client, (arrays, config) in asked.items():
        rows = batch_indices(client_key(0, client), 2, 0, 12, 4)
        run_half = partial(half, whole.x[client * 12 : (client + 1) * 12][torch.from_numpy(rows)])
        fresh = vector.directions(key, "rademacher").of_step(2, 0, int(config["stream"]), 2)
        us = replica.in_cone(fresh)
        assert not torch.equal(us[0].values(), fresh[0].values())
        with torch.no_grad():
            z = run_half()
        lam = torch.from_numpy(values(arrays["lam"]).copy())
        found = surrogate_scalars(run_half, vector, us, Probing(2), z, lam)
        np.testing.assert_array_equal(found.numpy()[None], scalars[client])


@pytest.mark.parametrize("directions", ["shared", "own"])
def test_a_spread_of_one_for_each_clients_mini_batch(directions: str) -> None:
    options: dict[str, Any] = {"rounds": 1, "probes": 3, "minibatches": 2}
    plain, scaled = (
        train(tiny.task(clients=2), clients=2, directions=directions, scale=scale, **options)
        for scale in ("none", "spread")
    )
    (reply, *others) = (content["arrays"] for _, _, content in plain.grid.replies if "z" not in
                        content["arrays"] and "scalars" in content["arrays"])  # fmt: skip
    v = np.stack([values(arrays["scalars"]) for arrays in (reply, *others)]).astype(np.float64)
    own = v / v.std(axis=2, ddof=1, keepdims=True) / (3 * 2 * 2)  # P probes, b batches, K clients
    (entry,) = scaled.strategy.mirror.journal.entries
    expected = own if directions == "own" else own.sum(axis=0, keepdims=True)
    np.testing.assert_allclose(
        np.sort(entry.coefficients, axis=0), np.sort(expected, axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("directions", ["shared", "own"])
def test_the_estimate_leans_on_the_gradient_as_theory_says(directions: str) -> None:
    """The cosine to the gradient is √(P / (P + d + 1)), with own directions P counts K times."""
    problem = tiny.task()
    cosines = []
    for seed in range(12):
        trial = begin(
            problem, rounds=1, probes=CLIENT_SIZE, seed=seed, client_lr=1.0, directions=directions
        )
        before = flat(trial.model, CLIENT_NAMES)
        step = before - flat(start(trial).model, CLIENT_NAMES)
        exact = splitfed_gradient(problem, seed=seed)
        cosines.append(float(functional.cosine_similarity(step, exact, dim=0)))
    expected = (CLIENT_SIZE / (2 * CLIENT_SIZE + 1)) ** 0.5
    if directions == "shared":
        assert np.mean(cosines) == pytest.approx(expected, rel=0.12)
    else:  # not exact: the clients' gradients differ, so the K estimates are not of one vector
        assert np.mean(cosines) > expected


def repeated(shares: list[Samples], times: int) -> list[Samples]:
    return [share for _ in range(times) for share in shares]


def updates(shares: list[Samples], **options: Any) -> tuple[Tensor, Tensor]:
    """Return the changes of the client half and of the server half in one round of SGD."""
    problem = tiny.task(shares)
    trial = begin(problem, rounds=1, clients=len(shares), batch_size=50, **options)
    before, server = trial.model, sorted(set(trial.model) - set(CLIENT_NAMES))
    after = start(trial).model
    return (
        flat(before, CLIENT_NAMES) - flat(after, CLIENT_NAMES),
        flat(before, server) - flat(after, server),
    )


SHARED: dict[str, Any] = {
    "directions": "shared",
    "probes": 8,
    "server_lr": 1.0,
    "client_lr": 1.0,
    "mu": 1e-2,
}


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("mean", ["uniform", "samples"])
def test_duplicating_every_client_leaves_the_updates_unchanged(mean: str) -> None:
    shares = [tiny.samples(n, n) for n in (1, 2, 3)]
    once = updates(shares, mean=mean, **SHARED)
    twice = updates(repeated(shares, 2), mean=mean, **SHARED)
    for a, b in zip(once, twice, strict=True):
        assert float(b.norm()) > 1e-3
        assert close(a, b)


def test_four_identical_clients_are_one() -> None:
    share = [tiny.samples(3)]
    one = updates(share, **SHARED)
    four = updates(repeated(share, 4), **SHARED)
    for a, b in zip(one, four, strict=True):
        assert close(a, b)


def test_duplicates_find_the_extra_division_of_the_published_runner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It scales each client's loss by 1/K, and averages over the K clients once more."""
    share = [tiny.samples(3)]
    one = updates(share, **SHARED)
    own = Trainer.gradients

    def scaled(
        half: Trainer, z: np.ndarray, y: np.ndarray, draw: tuple[int, int, int]
    ) -> Gradients:
        found = own(half, z, y, draw)
        return Gradients(found.lam / 4, found.loss / 4, [w / 4 for w in found.weights])

    monkeypatch.setattr(Trainer, "gradients", scaled)
    four = updates(repeated(share, 4), **SHARED)
    for a, b in zip(four, one, strict=True):
        assert not close(a, b, 0.5)
        assert close(a, b / 4)


def test_minibatches_of_one_exchange_are_averaged() -> None:
    share = [tiny.samples(8)]
    options: dict[str, Any] = {**SHARED, "clients": 1, "rounds": 1, "probes": 2 * CLIENT_SIZE}
    problem = tiny.task(share)
    both = train(problem, batch_size=4, minibatches=2, **options)
    whole = train(problem, batch_size=8, **options)
    server = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
    assert close(flat(both.model, server), flat(whole.model, server), 1e-6)
    (entry,) = both.strategy.mirror.journal.entries
    assert (entry.steps, entry.coefficients.shape) == (2, (1, 2, 2 * CLIENT_SIZE))
    keys = {(key.step, key.probe) for key in entry.keys()}
    assert keys == set(itertools.product(range(2), range(2 * CLIENT_SIZE)))
    assert both.strategy.ledger.samples == 8


def test_each_clients_own_directions_are_named_by_its_partition() -> None:
    trial = train(tiny.task(), rounds=1, directions="own")
    (entry,) = trial.strategy.mirror.journal.entries
    assert entry.streams == (1, 2, 3, 4)
    asked = [
        content["config"]["stream"] for kind, _, content in trial.grid.requests if "probe" in kind
    ]
    assert sorted(asked) == [1, 2, 3, 4]


def test_a_sample_weighted_mean_weighs_by_the_samples_of_the_round() -> None:
    shares = [tiny.samples(1, 1), tiny.samples(3, 2)]
    joined = Samples(torch.cat([s.x for s in shares]), torch.cat([s.y for s in shares]))
    weighted = updates(shares, mean="samples", **SHARED)
    together = updates([joined], **SHARED)
    uniform = updates(shares, mean="uniform", **SHARED)
    for a, b, c in zip(weighted, together, uniform, strict=True):
        assert close(a, b)
        assert not close(c, b, 1e-2)


def test_central_probes_are_closer_than_forward_ones() -> None:
    problem = tiny.task()
    exact = splitfed_gradient(problem).numpy()
    errors = {}
    for estimator in ("forward", "central"):
        trial = train(
            problem,
            rounds=1,
            directions="shared",
            probes=4 * CLIENT_SIZE,
            mu=0.02,
            estimator=estimator,
        )
        derivatives, directions = journalled(trial)
        found = np.linalg.lstsq(directions, derivatives, rcond=None)[0]
        errors[estimator] = np.linalg.norm(found - exact)
    assert errors["central"] < 0.3 * errors["forward"]


def test_schedules_by_hand() -> None:
    assert [scheduled("constant", 2.0, r, 4) for r in (1, 4)] == [2.0, 2.0]
    assert [scheduled("linear", 2.0, r, 4) for r in (1, 2, 3, 4)] == [2.0, 1.5, 1.0, 0.5]
    assert scheduled("cosine", 2.0, 1, 4) == 2.0
    assert scheduled("cosine", 2.0, 3, 4) == pytest.approx(1.0)
    warm = [scheduled("constant", 2.0, r, 9, warmup=4) for r in (1, 2, 4, 9)]
    assert warm == [0.5, 1.0, 2.0, 2.0]
    assert scheduled("linear", 2.0, 2, 4, warmup=4) == 2.0 * 0.5 * 0.75
    trial = train(tiny.task(), rounds=4, client_lr=2.0, client_lr_schedule="linear")
    assert [e.lr for e in trial.strategy.mirror.journal.entries] == [2.0, 1.5, 1.0, 0.5]
    rates = [record.extra["client_lr"] for record in trial.strategy.records[1:]]
    assert rates == [2.0, 1.5, 1.0, 0.5]


def test_momentum_is_torchs() -> None:
    """The client half moves as torch's SGD moves along the journalled estimates."""
    trial = begin(
        tiny.task(),
        rounds=4,
        directions="shared",
        client_optimizer="momentum",
        client_momentum=0.5,
        client_lr=0.1,
    )
    theta = flat(trial.model, CLIENT_NAMES).clone().requires_grad_()
    torch_sgd = torch.optim.SGD([theta], lr=0.1, momentum=0.5)
    start(trial)
    journal = trial.strategy.mirror.journal
    for entry in journal.entries:
        grad = torch.zeros(CLIENT_SIZE, dtype=torch.float64)
        for key, value in zip(entry.keys(), entry.coefficients.reshape(-1).tolist(), strict=True):
            direction = Directions(journal.header.run_key, "rademacher", [(CLIENT_SIZE,)]).of(key)
            grad += value * direction.values().double()
        theta.grad = grad
        torch_sgd.step()
    assert torch.allclose(theta.detach(), flat(trial.model, CLIENT_NAMES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_every_optimizer_and_law_keeps_clients_and_server_equal(optimizer: str, law: str) -> None:
    trial = train(
        tiny.task(),
        rounds=4,
        sampled=2,
        client_optimizer=optimizer,
        direction=law,
        client_weight_decay=0.01,
        client_lr=0.01,
    )
    strategy = trial.strategy
    assert strategy.version == 4
    chain = strategy.mirror.journal
    seen = {client: trial.position(client) for client in range(4)}
    assert max(version for version, _ in seen.values()) == 3  # the last update is not sent yet
    for version, digest in seen.values():
        assert version == -1 or chain.digest_at(version).hex() == digest


def test_the_model_learns() -> None:
    trial = train(
        tiny.task(clients=4, each=32),
        rounds=60,
        batch_size=16,
        probes=8,
        server_lr=0.3,
        server_momentum=0.9,
        client_lr=0.1,
    )
    first, last = trial.strategy.records[0].metrics, trial.strategy.records[-1].metrics
    assert last["loss"] < 0.8 * first["loss"]
    assert last["accuracy"] > 0.6


def test_batch_norm_without_running_statistics_is_refused() -> None:
    """A12."""

    def build() -> nn.Module:
        first, act, *rest = tiny.model().children()
        norm = nn.BatchNorm1d(tiny.CUT, track_running_stats=False)
        return nn.Sequential(first, norm, act, *rest)

    with pytest.raises(Exception, match=r"'1'.*track_running_stats=True") as caught:
        begin(tiny.task(build=build, cut="2"))
    assert caught.type.__name__ == "CutError"


def test_active_dropout_is_refused() -> None:
    """A12."""

    def build() -> nn.Module:
        first, act, *rest = tiny.model().children()
        return nn.Sequential(first, nn.Dropout(0.5), act, *rest)

    with pytest.raises(Exception, match=r"'1'.*eval") as caught:
        begin(tiny.task(build=build, cut="2"))
    assert caught.type.__name__ == "CutError"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"probes": 0}, r"probes is 0; it must be in \[1, 4096\]"),
        ({"minibatches": 0}, r"minibatches is 0; it must be in \[1, 4096\]"),
        ({"mu": 0.0}, r"mu is 0\.0; it must be in"),
        ({"mu": float("nan")}, "mu is nan"),
        ({"client_lr": -1.0}, "client_lr is -1.0; it must be in"),
        ({"client_lr": float("inf")}, "client_lr is inf; it must be in"),
        ({"direction": "cauchy"}, "one of rademacher, gaussian, sphere"),
        ({"directions": "mine"}, "one of own, shared"),
        ({"estimator": "x"}, "one of forward, central"),
        ({"client_optimizer": "lion"}, "one of sgd, momentum, adam, adamw"),
        ({"client_momentum": 1.0}, r"client_momentum is 1\.0; .* in \[0, 0\.9999\]"),
        ({"client_weight_decay": -1.0}, r"client_weight_decay is -1\.0; .* in \[0, 1000\]"),
        ({"server_steps": "client"}, "server_steps is 'client'; it must be one of round, batch"),
        ({"sync": "never"}, "one of auto, replay, download"),
        ({"client_mode": "train"}, "one of as_built, eval"),
        ({"client_lr_schedule": "step"}, "one of constant, linear, cosine"),
    ],
)
def test_settings_are_checked_before_anything_starts(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        HOSFLSettings(**options)


# The server's steps


def by_hand(
    trial: Trial, shares: list[Samples], rates: float, minibatches: int = 1
) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """Return the model, every λ in the order it is taken, and the clients, of one round of SGD."""
    model = tiny.model()
    model.load_state_dict(trial.model)
    layers = list(model.children())
    client, server = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])
    optimizer = torch.optim.SGD(server.parameters(), lr=rates)
    order = generator("splitfed order", 0, 1, 0).permutation(len(shares)).tolist()
    lams = []
    for number in order:
        for step in range(minibatches):
            share = shares[number]
            rows = batch_indices(client_key(0, number), 1, step, len(share), 4).copy()
            z = client(share.x[rows]).detach().requires_grad_()
            optimizer.zero_grad()
            functional.cross_entropy(server(z), share.y[rows]).backward()
            assert z.grad is not None
            lams.append(z.grad.clone())  # before the step on that batch
            optimizer.step()
    return dict(model.state_dict()), lams, order


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a2_lambda_is_taken_at_the_clients_turn_before_the_step_on_its_batch(
    minibatches: int,
) -> None:
    shares = [tiny.samples(8, seed) for seed in range(4)]
    options: dict[str, Any] = {
        "server_steps": "batch", "minibatches": minibatches, "server_lr": 0.5,
    }  # fmt: skip
    trial = begin(tiny.task(shares), rounds=1, client_lr=0.0, **options)
    expected, lams, order = by_hand(trial, shares, 0.5, minibatches)
    start(trial)
    for name, value in expected.items():
        assert torch.allclose(trial.model[name], value, rtol=1e-5, atol=1e-7), name
    sent = {
        client: torch.from_numpy(values(content["arrays"]["lam"]))
        for kind, client, content in trial.grid.requests
        if kind == "probe"
    }
    assert list(sent) == order != sorted(order)
    for client, found in sent.items():
        place = order.index(client) * minibatches
        mine = torch.cat(lams[place : place + minibatches])
        assert torch.allclose(found, mine, rtol=1e-5, atol=1e-8)


def test_a2_with_clients_that_stand_still_it_is_splitfed_v2_and_the_control() -> None:
    """One server sequence in all three, to the bit; with a step a round it is another."""
    options: dict[str, Any] = {"rounds": 4, "sampled": 3, "server_momentum": 0.9}
    ours = train(tiny.task(), server_steps="batch", client_lr=0.0, **options)
    assert equal(ours.model, train(tiny.task(), "splitfed_v2", client_lr=0.0, **options).model)
    assert equal(ours.model, train(tiny.task(), "frozen", server_steps="batch", **options).model)
    assert not equal(
        ours.model, train(tiny.task(), client_lr=0.0, server_steps="round", **options).model
    )


@pytest.mark.parametrize("directions", ["own", "shared"])
def test_a2_the_order_of_replies_changes_no_bit(directions: str) -> None:
    options: dict[str, Any] = {"server_steps": "batch", "directions": directions, "minibatches": 2}
    plain = train(tiny.task(), **options)
    again = begin(tiny.task(), faults=[Fault("twice")], **options)
    again.grid._rng.seed(99)
    start(again)
    assert equal(plain.model, again.model)
    assert plain.strategy.digest == again.strategy.digest
    (first, *_) = plain.strategy.mirror.journal.entries
    assert first.streams == ((1, 2, 3, 4) if directions == "own" else (0,))


def test_a2_the_client_half_follows_the_lambda_it_was_sent() -> None:
    trial = begin(tiny.task(), rounds=1, server_steps="batch", client_lr=1.0, directions="shared")
    before = flat(trial.model, CLIENT_NAMES)
    start(trial)
    derivatives, directions = journalled(trial)
    step = before - flat(trial.model, CLIENT_NAMES)
    assert np.allclose(step, derivatives @ directions / 4, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
@pytest.mark.parametrize("server_steps", ["round", "batch"])
def test_a2_a_client_whose_second_batch_is_refused_moves_nothing(
    method: str, server_steps: str
) -> None:
    """The server half stands as if the client had not answered; the first batch was good."""

    def spoil(content: RecordDict) -> RecordDict:
        arrays: Any = content["arrays"]
        y = values(arrays["y"]).copy()
        y[-1] = tiny.CLASSES  # no such class
        return changed(content, {"y": y})

    asked = "forward"
    options: dict[str, Any] = {
        "minibatches": 2,
        "server_steps": server_steps,
        "server_momentum": 0.9,
    }
    spoilt, dropped = (
        train(tiny.task(), method, [Fault(kind, {1}, {2}, asked, change=change)], **options)
        for kind, change in (("change", spoil), ("drop", None))
    )
    assert spoilt.total("rejected") == 1 and dropped.total("failures") == 1
    assert equal(spoilt.model, dropped.model)


def prelu() -> nn.Module:
    """Return the model with an activation that trains a number of its own."""
    model = tiny.model()
    model.act = nn.PReLU()
    return model


@pytest.mark.parametrize("together", [True, False])
def test_probes_in_one_forward_learn_what_single_ones_do(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(probing_module._log, "warning", lambda text, stack: said.append(text))
    options: dict[str, Any] = {"direction": "rank_one", "probes": 3, "rounds": 2}
    build = tiny.model if together else prelu
    single, stacked = (train(tiny.task(build=build), stack=n, **options) for n in (1, 2))
    one, two = (trial.strategy.mirror.journal.entries[0] for trial in (single, stacked))
    np.testing.assert_allclose(two.coefficients, one.coefficients, rtol=2e-3, atol=1e-5)
    assert equal(single.model, stacked.model) == (not together)
    assert [("is not of a linear layer" in text) for text in said] == [True] * (not together)
