from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import Tensor, nn

from benchmarks.calls import CallCounter
from sfl_flower.clients import decomfl
from sfl_flower.data import batch_indices, client_key, model_seed
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.node.sync import forget_recent
from sfl_flower.split import Whole
from sfl_flower.strategies.decomfl import DeComFLSettings
from sfl_flower.wire.decomfl import WalkRequest
from sfl_flower.zo import Direction, Directions, Journal, Key, loss_scalars
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import CLIENT_SIZE, Trial, begin, equal, flat, run, start, train

SIZE = CLIENT_SIZE + 5 * 4 + 4 + 4 * 3 + 3
"""Parameters of the whole model: 74."""


def theta(trial: Trial) -> Tensor:
    """The server's parameters in the order of the vector."""
    state = {f"client.{k}": v for k, v in trial.strategy.client_half.state_dict().items()}
    server = trial.strategy.server.module.state_dict()
    state |= {f"server.{k}": v for k, v in server.items()}
    return flat(state, state)


def directions(trial: Trial, round: int, steps: int, probes: int) -> np.ndarray:
    """The round's directions, float64, shape [steps, probes, SIZE]."""
    header = trial.strategy.mirror.journal.header
    return np.array(
        [
            [
                Directions(header.run_key, header.law, [(SIZE,)])
                .of(Key(round, h, 0, p))
                .values()
                .numpy()
                for p in range(probes)
            ]
            for h in range(steps)
        ],
        np.float64,
    )


def test_one_client_is_zeroth_order_sgd_on_the_whole_model() -> None:
    """Three rounds by hand, with losses of torch's module and directions of the key."""
    share, lr, mu, steps, probes = tiny.samples(10), 0.05, 1e-2, 4, 3
    trial = begin(
        tiny.task([share]),
        "decomfl",
        clients=1,
        rounds=3,
        local_steps=steps,
        probes=probes,
        mu=mu,
        client_lr=lr,
    )
    halves = trial.strategy.task.build(model_seed(0))
    model = Whole(halves.client, halves.server).double()
    names = sorted(dict(model.named_parameters()))
    at = theta(trial).clone()
    losses = []

    def loss(where: Tensor, rows: Any) -> Tensor:
        parts = where.split([model.get_parameter(name).numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            model.get_parameter(name).data = part.view_as(model.get_parameter(name))
        with torch.no_grad():
            return nn.functional.cross_entropy(model(share.x[rows].double()), share.y[rows])

    for round in range(1, 4):
        drawn = torch.from_numpy(directions(trial, round, steps, probes))
        for step in range(steps):
            rows = batch_indices(client_key(0, 0), round, step, 10, 4).copy()
            here = loss(at, rows)
            losses.append(float(here))
            v = torch.stack([loss(at + mu * u, rows) - here for u in drawn[step]])
            at = at - lr / (probes * mu) * v @ drawn[step]
    before = theta(trial).clone()
    start(trial)
    assert float((before - at).norm()) > 0.05
    assert torch.allclose(theta(trial), at, rtol=0, atol=2e-5)
    recorded = [record.loss for record in trial.strategy.records[1:]]
    expected = np.array(losses).reshape(3, steps).mean(axis=1)
    assert np.allclose(recorded, expected, atol=1e-5)
    (first, *_) = trial.strategy.mirror.journal.entries
    assert (first.streams, first.steps, first.probes) == ((0,), steps, probes)


def shares(count: int) -> list[Any]:
    return [tiny.samples(3, seed) for seed in range(count)]


OPTIONS: dict[str, Any] = {"rounds": 2, "local_steps": 3, "mu": 1e-2, "client_lr": 0.1}


@pytest.mark.parametrize("mean", ["uniform", "samples"])
def test_duplicating_every_client_changes_nothing(mean: str) -> None:
    # Copies of one sample: a batch has the same sum in whatever order the client draws it.
    mixed = [tiny.samples(1, n).take(np.zeros(n, np.int64)) for n in (1, 2, 3)]
    once = train(tiny.task(mixed), "decomfl", clients=3, mean=mean, **OPTIONS)
    twice = train(tiny.task(mixed * 2), "decomfl", clients=6, mean=mean, **OPTIONS)
    initial = begin(tiny.task(mixed), "decomfl", clients=3).model
    names = sorted(initial)
    assert float((flat(once.model, names) - flat(initial, names)).norm()) > 1e-2
    assert torch.allclose(flat(once.model, names), flat(twice.model, names), rtol=0, atol=1e-6)


def test_the_update_is_the_mean_of_the_walks() -> None:
    """Each client walks alone in a run of its own; the mean of where they end is the round."""
    options = {**OPTIONS, "rounds": 1}
    given = shares(2)
    alone = [
        theta(train(tiny.task([s, s]), "decomfl", clients=2, mean="samples", **options))
        for s in given
    ]
    both = theta(train(tiny.task(given), "decomfl", clients=2, mean="samples", **options))
    assert float((alone[0] - alone[1]).norm()) > 1e-3
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("sync", "law"), [("auto", "rademacher"), ("replay", "gaussian"), ("download", "sphere")]
)
def test_replayed_clients_equal_live_ones_and_the_server_to_the_bit(sync: str, law: str) -> None:
    faults = [
        Fault("drop", {0}, {2, 3}),
        Fault("forget", {1}, {4}),
        Fault("rollback", {2}, {3}),
        # Everyone syncs, nothing changes.
        Fault("change", None, {7}, change=lambda c: changed(c, config={"round": 9})),
    ]
    trial = train(
        tiny.task(), "decomfl", faults, sync=sync, direction=law, **{**OPTIONS, "rounds": 7}
    )
    mirror = trial.strategy.mirror
    assert mirror.version == 6
    assert {trial.position(client) for client in range(4)} == {(6, mirror.digest)}
    assert {trial.theta(c).tobytes() for c in range(4)} == {mirror.replica.theta.numpy().tobytes()}
    assert torch.equal(theta(trial), mirror.replica.theta.double())
    assert trial.strategy.records[-1].metrics == trial.strategy.records[-2].metrics


def test_clients_that_share_a_process_change_no_bit() -> None:
    together = train(tiny.task(), "decomfl", sampled=2, rounds=5)
    apart = begin(tiny.task(), "decomfl", sampled=2, rounds=5)
    deliver = apart.grid.deliver

    def alone(message: Message) -> Message | None:
        forget_recent()
        return deliver(message)

    apart.grid.deliver = alone  # type: ignore[method-assign]
    assert equal(together.model, start(apart).model)


def watch(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    """Note forwards, backwards and whether the parameters moved and are back, at each walk."""
    own, add = decomfl.walk, Direction.add_to

    def walk(node: Any, request: WalkRequest) -> Any:
        moved = []

        def added(direction: Any, out: Tensor, base: Tensor, *rest: Any) -> None:
            add(direction, out, base, *rest)
            if out is base:
                moved.append(out.numpy().tobytes())

        half = node.whole
        half.trained  # noqa: B018  # laid out before it is counted
        with monkeypatch.context() as patch, CallCounter(half.module) as calls:
            patch.setattr(Direction, "add_to", added)
            reply = own(node, request)
        theta = node.store.get("replica")["theta"]
        back = half.trained.anchor.numpy().tobytes() == theta.tobytes()
        seen.append((calls.forwards, calls.backwards, back, len(set(moved) - {theta.tobytes()})))
        return reply

    monkeypatch.setattr(decomfl, "walk", walk)


@pytest.mark.parametrize(("estimator", "forwards"), [("forward", 6), ("central", 10)])
def test_a_walk_counts_its_forwards_and_is_undone_to_the_bit(
    estimator: str, forwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    watch(monkeypatch, seen)
    trial = train(tiny.task(), "decomfl", estimator=estimator, probes=5, **OPTIONS)
    # 3 steps of 5 probes: the parameters took 15 values that were not those of the round's start.
    assert seen == [(3 * forwards, 0, True, 15)] * 8
    assert trial.strategy.ledger.samples == 2 * 4 * 3 * 4


def test_a_walk_that_fails_is_undone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(*args: Any) -> Tensor:
        calls.append(args[1].anchor.clone())
        found = loss_scalars(*args)
        return found * float("nan") if len(calls) == 2 else found

    monkeypatch.setattr(decomfl, "loss_scalars", broken)
    trial = train(tiny.task(clients=1), "decomfl", clients=1, **{**OPTIONS, "rounds": 2})
    assert "The scalars of local step 1 are not finite" in trial.notes
    assert [record.version for record in trial.strategy.records] == [0, 0, 1]
    first, second, again = calls[:3]
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_a_scalar_that_is_not_finite_or_too_large_never_reaches_the_journal() -> None:
    def scalar(value: float) -> Any:
        def change(content: Any) -> Any:
            scalars = values(content["arrays"]["scalars"]).copy()
            scalars[-1, -1] = value
            return changed(content, arrays={"scalars": scalars})

        return change

    def narrow(content: Any) -> Any:
        return changed(content, arrays={"scalars": values(content["arrays"]["scalars"])[:, 1:]})

    def many(content: Any) -> Any:
        return changed(content, metrics={"num-examples": 13})

    changes = (scalar(float("nan")), scalar(float("inf")), scalar(2e4), narrow, many)
    faults = [Fault("change", {1}, {r + 1}, change=c) for r, c in enumerate(changes)]
    options = {**OPTIONS, "rounds": 5}
    trial = train(tiny.task(), "decomfl", faults, **options)
    dropped = train(tiny.task(), "decomfl", [Fault("drop", {1})], **options)
    assert equal(trial.model, dropped.model)
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(3, 1)] * 5
    for note in (
        "not finite",
        "|v| / mu = 2e+06",
        "asked was (3, 5)",
        "it says 13 samples; 3 steps of this client are 12",
    ):
        assert note in trial.notes
    every = Fault("change", None, {1}, change=scalar(float("nan")))
    silent = train(tiny.task(), "decomfl", [every], **OPTIONS)
    assert [record.version for record in silent.strategy.records] == [0, 0, 1]


def test_nothing_but_scalars_goes_up() -> None:
    trial = train(tiny.task(), "decomfl", **OPTIONS)
    sent = [content for kind, _, content in trial.grid.replies if kind == "walk"]
    assert {tuple(content["arrays"]) for content in sent} == {("scalars",)}
    assert trial.grid.log["walk", 0] == 2  # one exchange a round


def test_a_schedule_reaches_the_walks_and_the_journal() -> None:
    options = {**OPTIONS, "rounds": 4, "client_lr": 2e-3, "client_lr_schedule": "linear"}
    trial = train(tiny.task(), "decomfl", **options)
    expected = [2e-3, 1.5e-3, 1e-3, 5e-4]
    assert [e.lr for e in trial.strategy.mirror.journal.entries] == pytest.approx(expected)
    asked = [c["config"]["lr"] for kind, n, c in trial.grid.requests if kind != "join" and n == 0]
    assert asked == pytest.approx(expected)


def test_it_learns() -> None:
    options: dict[str, Any] = {"local_steps": 4, "probes": 8, "client_lr": 0.05}
    trial = train(tiny.task(), "decomfl", rounds=12, **options)
    first, last = (trial.strategy.records[i].metrics["loss"] for i in (0, -1))
    assert last < first - 0.05


def test_the_run_directory_has_the_journal_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tiny.task(), "decomfl", out=whole, rounds=4)
    run(tiny.task(), "decomfl", out=parts, rounds=2)
    run(tiny.task(), "decomfl", out=parts, rounds=4, resume=True)
    for name in ("journal.bin", "model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert Journal.load(whole / "journal.bin").version == 4


def test_a_run_may_start_from_weights_that_are_given() -> None:
    trial = begin(tiny.task(), "decomfl", rounds=3)
    given = begin(tiny.task(), "decomfl", seed=5).strategy.arrays()
    trial.strategy.arrays = lambda: given
    start(trial)
    mirror = trial.strategy.mirror
    assert mirror.version == 3
    assert torch.equal(theta(trial), mirror.replica.theta.double())
    assert {trial.position(client)[0] for client in range(4)} == {2}


def test_fixed_parameters_keep_their_bits() -> None:
    def fixed() -> nn.Module:
        model = tiny.model()
        model.get_submodule("first").requires_grad_(False)
        return model

    trial = begin(tiny.task(build=fixed), "decomfl", **OPTIONS)
    before = trial.model
    after = start(trial).model
    assert all(torch.equal(before[name], after[name]) for name in tiny.CLIENT_NAMES)
    assert not torch.equal(before["out.weight"], after["out.weight"])


def behind_the_cut() -> nn.Module:
    return nn.Sequential(*tiny.model().children(), nn.Dropout(0.5))


def test_batch_norm_and_dropout_are_refused_on_both_sides_and_eval_mode_runs() -> None:
    problem = tiny.task(build=tiny.with_batch_norm)
    with pytest.raises(CutError, match=r"'norm'.*BatchNorm.*another cut does not help"):
        begin(problem, "decomfl")
    with pytest.raises(CutError, match=r"'5'.*Dropout.*client-mode=eval"):
        begin(tiny.task(build=behind_the_cut, cut="1"), "decomfl")
    trial = train(problem, "decomfl", client_mode="eval", **OPTIONS)
    assert trial.strategy.version == 2
    assert int(trial.model["norm.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local_steps": 0}, r"local_steps is 0; it must be in \[1, 4096\]"),
        ({"probes": 0}, "probes is 0"),
        ({"local_steps": 2048, "probes": 1024}, "is 2097152; a journal entry holds at most"),
        ({"mu": 0.0}, r"mu is 0\.0; it must be in"),
        ({"client_lr": -1.0}, "client_lr is -1.0"),
        ({"scalar_limit": float("inf")}, "scalar_limit is inf"),
        ({"direction": "cauchy"}, "one of rademacher, gaussian, sphere"),
        ({"estimator": "x"}, "one of forward, central"),
        ({"client_lr_schedule": "step"}, "one of constant, linear, cosine"),
        ({"sync": "never"}, "one of auto, replay, download"),
        ({"client_mode": "train"}, "one of as_built, eval"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DeComFLSettings(**options)


def test_local_steps_are_the_batches_of_a_round() -> None:
    assert DeComFLSettings(local_steps=6).batches(100, 4) == 6
