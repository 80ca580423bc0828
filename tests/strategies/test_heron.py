"""HERON-SFL: its estimate, its uplinks, CSE-FSL's trajectory, and its faults."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional

from sfl_flower import simulate
from sfl_flower.clients import heron as client
from sfl_flower.config import RunConfig
from sfl_flower.data import batch_indices, client_key
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.methods import read_options
from sfl_flower.node.local_loss import LocalModel, Uploads, local_model
from sfl_flower.server import local_walks
from sfl_flower.server.exchange import Exchange
from sfl_flower.task import SplitTask
from sfl_flower.zo import (
    Direction,
    Directions,
    Key,
    ParameterVector,
    Probing,
    client_stream,
    loss_scalars,
    run_key,
    step_keys,
)
from sfl_flower.zo.law import Values
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import CUT, Trial, begin, equal, start

HEAD_SIZE = CUT * tiny.CLASSES + tiny.CLASSES
SIZE = tiny.CLIENT_SIZE + HEAD_SIZE
BASE: dict[str, Any] = {
    "local_steps": 3,
    "upload_every": 1,
    "probes": 1,
    "mu": 1e-2,
    "direction": "rademacher",
    "estimator": "forward",
    "head": "linear",
    "head_trainer": "client",
    "client_optimizer": "sgd",
    "client_momentum": 0.5,
    "client_weight_decay": 0.0,
    "client_lr": 0.1,
    "client_lr_schedule": "constant",
    "client_lr_warmup": 0,
    "client_state": "fresh",
    "uplink": "scalars",
    "server_lr": 0.2,
}


def open_run(problem: SplitTask | None = None, faults: Any = (), **options: Any) -> Trial:
    return begin(problem or tiny.task(), "heron", faults, **{**BASE, **options})


def train(problem: SplitTask | None = None, faults: Any = (), **options: Any) -> Trial:
    return start(open_run(problem, faults, **options))


def all_of(trial: Trial) -> dict[str, Tensor]:
    """Return client half, server half and head."""
    head = {f"head.{k}": v.clone() for k, v in trial.strategy.head.state_dict().items()}
    return {k: v.clone() for k, v in trial.model.items()} | head


def local(trial: Trial) -> LocalModel:
    """Return a copy of client half and head as they are now."""
    strategy = trial.strategy
    return LocalModel(copy.deepcopy(strategy.client_half), copy.deepcopy(strategy.head))


def flat(model: nn.Module) -> Tensor:
    """Return the trained parameters in canonical order, float64."""
    named = sorted(model.named_parameters())
    return torch.cat([p.detach().reshape(-1) for _, p in named if p.requires_grad]).double()


def sent(trial: Trial, name: str) -> list[np.ndarray]:
    return [values(c["arrays"][name]) for _, _, c in trial.grid.replies if name in c["arrays"]]


def fixed() -> nn.Module:
    model = tiny.model()
    model.get_submodule("first").requires_grad_(True)
    model.get_parameter("first.bias").requires_grad_(False)
    return model


# Uplinks

VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd with decay": {"client_weight_decay": 0.1},
    "momentum": {"client_optimizer": "momentum"},
    "adam": {"client_optimizer": "adam", "client_lr": 0.01},
    "adamw": {"client_optimizer": "adamw", "client_lr": 0.01, "client_weight_decay": 0.1},
    "radazo": {"client_optimizer": "radazo", "client_lr": 0.01, "local_steps": 3},
    "hiso": {"client_optimizer": "hiso", "client_lr": 0.01, "local_steps": 3},
    "rank one": {"direction": "rank_one", "probes": 3, "stack": 3},
    "stack of both": {
        "direction": "rank_one",
        "probes": 3,
        "stack": 2,
        "head_trainer": "client",
        "estimator": "central",
    },
    "cone": {"cone": 0.5, "local_steps": 3},
    "cone of adam": {"cone": 0.5, "client_optimizer": "adam", "client_lr": 0.01, "local_steps": 3},
    "batch norm": {"build": tiny.with_batch_norm, "client_optimizer": "adam"},
    "every second upload": {"upload_every": 2},
    "every third upload": {"upload_every": 3, "client_optimizer": "momentum"},
    "frozen parameters": {"build": fixed, "client_optimizer": "adam"},
    "three probes": {"probes": 3, "client_optimizer": "adam"},
    "central": {"estimator": "central", "probes": 2},
    "gaussian": {"direction": "gaussian", "probes": 2},
    "sphere": {"direction": "sphere"},
    "schedule": {"client_lr_schedule": "cosine", "client_lr_warmup": 2},
    "clipped": {"clip_norm": 0.1, "probes": 3},
    "spread": {"scale": "spread", "probes": 3},
    "spread and clipped": {"scale": "spread", "probes": 2, "clip_norm": 0.5},
    "walk": {"walk": True, "probes": 3, "clip_norm": 0.1},
    "walk of adam": {"walk": True, "probes": 2, "scale": "spread", "client_optimizer": "adam"},
    "by samples": {"mean": "samples", "local_steps": 0},
    "sampled": {"sampled": 2},
    "kept": {"client_state": "kept"},
    "task head": {"head": "task"},
    "server's head": {"head_trainer": "server", "server_momentum": 0.9, "head_lr": 0.2},
    "server's head, adam": {"head_trainer": "server", "client_optimizer": "adam"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_scalars_and_weights_give_the_same_bits(name: str) -> None:
    options = dict(VARIANTS[name])
    build = options.pop("build", tiny.model)

    def problem() -> SplitTask:
        shares = [tiny.samples(n, n) for n in (12, 10, 6, 7)]
        return tiny.task(shares, build=build, head=lambda: nn.Linear(CUT, tiny.CLASSES))

    trials = [train(problem(), uplink=uplink, **options) for uplink in ("scalars", "weights")]
    scalars, weights = trials
    before = all_of(open_run(problem(), **options))
    assert equal(all_of(scalars), all_of(weights))
    assert not equal(all_of(scalars), before)
    assert scalars.total("failures") == scalars.total("rejected") == 0
    ledgers = [trial.strategy.ledger for trial in trials]
    for category in ("smashed", "labels"):
        assert ledgers[0].up[category] == ledgers[1].up[category] > 0
    assert ledgers[0].bytes_up < ledgers[1].bytes_up or name == "batch norm"


def test_frozen_parameters_keep_their_bits_and_do_not_go_up_with_scalars() -> None:
    problem = tiny.task(build=fixed)
    trial = open_run(problem)
    before = trial.model["first.bias"].clone()
    start(trial)
    assert torch.equal(trial.model["first.bias"], before)
    assert trial.strategy.ledger.up["weights"] == trial.strategy.ledger.up["auxiliary"] == 0
    assert not sent(trial, "weights.float32")


def test_only_buffers_go_up_with_scalars() -> None:
    trial = train(tiny.task(build=tiny.with_batch_norm, cut="act"), rounds=1)
    # Mean and variance of the norm, and its counter.
    assert [a.size for a in sent(trial, "weights.float32")] == [2 * CUT] * 4
    assert trial.strategy.ledger.up["weights"] == 4 * (4 * 2 * CUT + 8)
    assert int(trial.model["norm.num_batches_tracked"]) == 3


def test_a_head_that_the_server_trains_takes_a_step_for_each_upload() -> None:
    trial = open_run(head_trainer="server", head_lr=0.3, server_momentum=0.5, rounds=1)
    twin = copy.deepcopy(trial.strategy.head)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.5)
    before = trial.model
    start(trial)
    replies = sorted(
        (client, content["arrays"])
        for kind, client, content in trial.grid.replies
        if kind == "local"
    )
    for _, arrays in replies:
        z, y = (torch.from_numpy(values(arrays[name]).copy()) for name in ("z", "y"))
        y = y.long()  # they travel as the smallest integers that hold them
        for part, labels in zip(z.split(4), y.split(4), strict=True):
            functional.cross_entropy(twin(part), labels).backward()
            sgd.step()
            sgd.zero_grad()
    for name, value in twin.state_dict().items():
        assert torch.allclose(trial.strategy.head.state_dict()[name], value, atol=1e-7), name
    assert not torch.equal(trial.model["first.weight"], before["first.weight"])
    assert trial.strategy.ledger.up["auxiliary"] == 0
    assert trial.strategy.ledger.down["auxiliary"] == 4 * 4 * HEAD_SIZE


def test_clients_do_not_move_a_head_that_the_server_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = open_run(head_trainer="server", rounds=1, probes=2)
    with watched(trial, monkeypatch) as seen:
        start(trial)
    client_only = {name: name.startswith("client.") for name in seen["moved"][0]}
    assert seen["moved"] == [client_only] * (4 * 3 * 2)


# The estimate: A4, A13


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_the_mean_of_many_estimates_is_the_gradient_of_the_local_loss(law: str) -> None:
    """One step of 1024 probes; the variance of their mean is (d + 1) / P of the gradient's."""
    share, probes = tiny.samples(4), 1024
    problem = tiny.task([share])
    trial = open_run(
        problem, clients=1, rounds=1, local_steps=1, probes=probes, mu=1e-2, client_lr=1.0,
        direction=law,
    )  # fmt: skip
    model = local(trial)
    before = flat(model)
    loss = functional.cross_entropy(model(share.x), share.y)
    named = sorted(model.named_parameters())
    exact = torch.autograd.grad(loss, [p for _, p in named])
    g = torch.cat([part.reshape(-1) for part in exact]).double()
    assert before.numel() == g.numel() == SIZE
    start(trial)
    estimate = before - flat(local(trial))
    # <g^, g> / |g|² has a standard deviation of √(2 / P) = 0.044 at most.
    assert float(estimate @ g / (g @ g)) == pytest.approx(1.0, abs=0.17)
    assert float((estimate - g).norm() / g.norm()) == pytest.approx((SIZE / probes) ** 0.5, rel=0.4)


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_scalars_over_mu_are_the_derivatives_of_the_local_loss(estimator: str) -> None:
    share = tiny.samples(4)
    errors = {}
    for mu in (1e-1, 1e-2):
        trial = open_run(
            tiny.task([share]), clients=1, rounds=1, local_steps=1, probes=16, mu=mu,
            estimator=estimator,
        )  # fmt: skip
        model = local(trial).double()
        start(trial)
        (scalars,) = sent(trial, "scalars")
        assert scalars.shape == (1, 16)
        point = {name: p.detach() for name, p in sorted(model.named_parameters())}
        x, y = share.x.double(), share.y

        def loss(
            theta: dict[str, Tensor], model: LocalModel = model, x: Tensor = x, y: Tensor = y
        ) -> Tensor:
            return functional.cross_entropy(functional_call(model, theta, (x,)), y)

        found = []
        for key in step_keys(1, 0, client_stream(0), 16):
            own = Directions(run_key("heron", client_key(0, 0)), "rademacher", [(SIZE,)])
            u = own.of(key).values().double()
            tangent, low = {}, 0
            for name, value in point.items():
                tangent[name] = u[low : low + value.numel()].view(value.shape)
                low += value.numel()
            found.append(float(jvp(loss, (point,), (tangent,))[1]))
        errors[mu] = np.abs(scalars[0] / mu - np.array(found)).mean()
    if estimator == "central":
        assert errors[1e-2] < 5e-4
        assert errors[1e-1] / errors[1e-2] == pytest.approx(100, rel=0.4)
    else:  # curvature: linear in μ
        assert errors[1e-1] / errors[1e-2] == pytest.approx(10, rel=0.3)


def test_directions_are_a_clients_own_in_every_step_and_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys: list[Key] = []
    of_keys = Directions.of_keys

    def noted(directions: Directions, named: list[Key]) -> list[Direction]:
        keys.extend(named)
        return of_keys(directions, named)

    monkeypatch.setattr(Directions, "of_keys", noted)
    train(tiny.task(), clients=3, rounds=2, local_steps=4, probes=3)
    assert set(keys) == {
        Key(round, step, partition + 1, probe)
        for round, partition, step, probe in itertools.product((1, 2), range(3), range(4), range(3))
    }
    assert len(keys) == 72


@contextmanager
def watched(trial: Trial, patch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Count forwards of client half and head, tensors kept for a graph, and what probes move."""
    seen: dict[str, Any] = {"client": 0, "head": 0, "saved": 0, "graph": 0, "moved": [], "z": []}
    own, probes, deliver = local_model, loss_scalars, trial.grid.deliver
    hooks: list[Any] = []
    now: dict[str, Tensor] = {}

    def opened(*given: Any) -> LocalModel:
        found = own(*given)

        def count(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                seen[name] += 1
                seen["graph"] += output.requires_grad

            return hook

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                own = {f"{name}.{key}": p for key, p in module.named_parameters(recurse=False)}
                now.update({key: p.clone() for key, p in own.items()})

            return hook

        if not hooks:
            hooks.append(found.client.register_forward_hook(count("client")))
            hooks.append(found.head.register_forward_hook(count("head")))
            hooks.extend(m.register_forward_hook(note(name)) for name, m in found.named_modules())
            seen["model"] = found
        return found

    def probed(loss: Any, vector: ParameterVector, *rest: Any, **named: Any) -> Tensor:
        before = {k: p.clone() for k, p in seen["model"].named_parameters()}

        def moved() -> Tensor:
            now.clear()  # what layers see while they run
            value: Tensor = loss()
            seen["moved"].append({k: not torch.equal(p, now[k]) for k, p in before.items()})
            return value

        found = probes(moved, vector, *rest, **named)
        after = dict(seen["model"].named_parameters())
        seen.setdefault("restored", []).append(
            all(torch.equal(before[k].view(torch.int32), after[k].view(torch.int32)) for k in after)
        )
        return found

    def keep(tensor: Tensor) -> Tensor:
        seen["saved"] += 1
        return tensor

    def delivered(message: Message) -> Message | None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return deliver(message)

    patch.setattr(client, "local_model", opened)
    patch.setattr(client, "loss_scalars", probed)
    trial.grid.deliver = delivered  # type: ignore[method-assign]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("probes", "estimator", "forwards"), [(1, "forward", 2), (3, "forward", 4), (2, "central", 5)]
)
def test_forwards_no_graph_exact_restore_and_joint_probes(
    probes: int, estimator: str, forwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = tiny.task(build=tiny.with_batch_norm, cut="act")
    trial = open_run(problem, rounds=2, probes=probes, estimator=estimator)
    with watched(trial, monkeypatch) as seen:
        start(trial)
    steps = 2 * 4 * 3  # rounds, clients, local steps
    assert trial.total("failures") == 0
    assert seen["client"] == seen["head"] == steps * forwards
    assert seen["saved"] == seen["graph"] == 0
    assert all(p.grad is None for p in seen["model"].parameters())
    assert seen["restored"] == [True] * steps
    assert len(seen["moved"]) == steps * (forwards - 1)
    assert all(all(moved.values()) for moved in seen["moved"])  # client half and head, all of them


def test_uploads_and_running_statistics_are_the_anchors_alone() -> None:
    share = tiny.samples(8)
    problem = tiny.task([share], build=tiny.with_batch_norm, cut="act")
    trial = open_run(problem, clients=1, rounds=1, local_steps=1, probes=3, uplink="weights")
    model = local(trial)
    rows = batch_indices(client_key(0, 0), 1, 0, 8, 4).copy()
    with torch.no_grad():
        z = model.client(share.x[rows])
    start(trial)
    (up,) = sent(trial, "z")
    assert up.tobytes() == z.numpy().tobytes()
    for name, value in model.client.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(trial.model[name], value), name
            assert value.any()
    assert not torch.equal(trial.model["norm.weight"], model.client.state_dict()["norm.weight"])


def test_uploads_of_later_steps_are_pre_step_too() -> None:
    """z of step m comes from the weights after m steps: those a round of m steps ends with."""
    share = tiny.samples(8)
    options: dict[str, Any] = {"clients": 1, "rounds": 1, "probes": 2}
    trial = train(tiny.task([share]), local_steps=4, upload_every=2, **options)
    shorter = local(train(tiny.task([share]), local_steps=2, **options))
    rows = batch_indices(client_key(0, 0), 1, 2, 8, 4).copy()
    with torch.no_grad():
        z = shorter.client(share.x[rows])
    (up,) = sent(trial, "z")
    assert up.shape == (8, CUT)  # steps 0 and 2
    np.testing.assert_array_equal(up[4:], z.numpy())


# With the first-order gradient in place of the estimate: A5, A3

EXACT_MU = 2.0**-10  # v = μ makes the coefficient of the one direction exactly 1


@pytest.fixture
def first_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one direction of a step be the gradient of the local loss."""
    gradients: dict[Key, np.ndarray] = {}

    def exact(
        loss: Callable[[], Tensor], vector: ParameterVector, directions: list[Direction],
        probing: Probing, anchor: Tensor, together: object = None,
    ) -> Tensor:  # fmt: skip
        with torch.enable_grad():
            parts = torch.autograd.grad(loss(), vector.parameters)
        (direction,) = directions
        assert direction.key is not None
        gradients[direction.key] = torch.cat([part.reshape(-1) for part in parts]).numpy()
        return torch.tensor([probing.unit])

    class Given(Values):
        def __init__(self, values: np.ndarray) -> None:
            self._values = values

        def write(self, out: np.ndarray, start: int, constant: np.float32) -> None:
            np.multiply(self._values[start : start + len(out)], constant, out=out)

    drawn = Directions.values

    def values(directions: Directions, key: Key, once: bool = False) -> Values:
        return Given(gradients[key]) if once else drawn(directions, key)

    monkeypatch.setattr(client, "loss_scalars", exact)
    monkeypatch.setattr(Directions, "values", values)


FO: dict[str, Any] = {"probes": 1, "mu": EXACT_MU, "direction": "gaussian"}
SHARED = ("local_steps", "upload_every", "client_lr", "client_weight_decay", "server_lr", "head")


@pytest.mark.usefixtures("first_order")
@pytest.mark.parametrize("uplink", ["scalars", "weights"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs", "momentum"),
    [("sgd", "sgd", 0.0), ("momentum", "sgd", 0.5), ("adam", "adam", 0.0)],
)
def test_with_the_true_gradient_it_is_cse_fsl(
    ours: str, theirs: str, momentum: float, k: int, uplink: str
) -> None:
    options: dict[str, Any] = {
        **{name: BASE[name] for name in SHARED},
        "local_steps": 6,
        "upload_every": k,
        "client_weight_decay": 0.01,
        "client_momentum": momentum,
        "client_lr": 0.02,
        "rounds": 3,
    }
    heron = train(client_optimizer=ours, uplink=uplink, **{**FO, **options})
    other = start(begin(tiny.task(), "cse_fsl", client_optimizer=theirs, **options))
    assert heron.total("failures") == other.total("failures") == 0
    assert heron.total("replies") == other.total("replies") == 12
    mine, cse = all_of(heron), all_of(other)
    before = all_of(open_run())
    assert mine.keys() == cse.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, cse[name], rtol=0, atol=2e-6, msg=name)
        assert float((value - before[name]).abs().max()) > 1e-3, name
    assert np.array_equal(heron.strategy.ledger.up["smashed"], other.strategy.ledger.up["smashed"])


@pytest.mark.usefixtures("first_order")
def test_with_the_true_gradient_and_batch_norm_it_is_cse_fsl() -> None:
    problem = tiny.task(build=tiny.with_batch_norm, cut="act")
    options: dict[str, Any] = {**{name: BASE[name] for name in SHARED}, "client_momentum": 0.0}
    heron = train(problem, client_optimizer="sgd", **{**FO, **options})
    other = start(begin(problem, "cse_fsl", client_optimizer="sgd", **options))
    mine, cse = all_of(heron), all_of(other)
    for name, value in mine.items():
        # BatchNorm over four samples amplifies, behind the cut, the last bits of z (3e-8 there).
        behind = name.startswith(("hidden", "norm2", "out"))
        atol = 1e-5 if behind else 1e-6
        torch.testing.assert_close(value, cse[name], rtol=0, atol=atol, msg=name)


@pytest.mark.usefixtures("first_order")
@pytest.mark.parametrize("mean", ["uniform", "samples"])
def test_duplicated_clients_change_no_client_half_and_no_head(mean: str) -> None:
    """One batch a client. θ_s is left out: it takes a step for each upload, so twice as many."""
    shares = [tiny.samples(n, n) for n in (1, 2, 4)]
    options: dict[str, Any] = {
        **FO, "rounds": 2, "server_lr": 0.0, "mean": mean, "client_momentum": 0.0,
    }  # fmt: skip
    once = local(train(tiny.task(shares), clients=3, **options))
    twice = local(train(tiny.task(shares + shares), clients=6, **options))
    step = flat(once) - flat(local(open_run(tiny.task(shares), clients=3, **options)))
    assert float(step.norm()) > 1e-2
    assert float((flat(once) - flat(twice)).norm()) <= 2e-5 * float(step.norm())


def test_with_equal_keys_duplicates_change_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (client, local_walks):
        monkeypatch.setattr(module, "client_stream", lambda partition: partition % 3 + 1)
    monkeypatch.setattr(RunConfig, "client_key", lambda config, partition: f"{partition % 3}")
    shares = [tiny.samples(1, n) for n in range(3)]  # one sample: one order of its batch
    once = local(train(tiny.task(shares), clients=3, rounds=2, server_lr=0.0))
    twice = local(train(tiny.task(shares + shares), clients=6, rounds=2, server_lr=0.0))
    step = flat(once) - flat(local(open_run(tiny.task(shares), clients=3)))
    assert float((flat(once) - flat(twice)).norm()) <= 1e-5 * float(step.norm())


def test_identical_clients_have_directions_of_their_own() -> None:
    share = tiny.samples(1)
    one = train(tiny.task([share]), clients=1, rounds=1, server_lr=0.0)
    two = train(tiny.task([share] * 2), clients=2, rounds=1, server_lr=0.0)
    a, b = sent(two, "scalars")
    assert not np.array_equal(a, b)
    assert not equal(one.model, two.model)


# State and steps


def test_a_kept_optimizer_state_goes_on_over_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of one step are one round of three, where directions are named by the step."""

    def counted(round: int, step: int, stream: int, probes: int) -> list[Key]:
        return step_keys(0, round - 1 + step, stream, probes)

    monkeypatch.setattr(client, "step_keys", counted)
    share = [tiny.samples(1)]
    options: dict[str, Any] = {"clients": 1, "uplink": "weights", "server_lr": 0.0}
    for optimizer in ("momentum", "adam"):
        options["client_optimizer"] = optimizer
        whole = train(tiny.task(share), rounds=1, local_steps=3, **options)
        kept = train(tiny.task(share), rounds=3, local_steps=1, client_state="kept", **options)
        fresh = train(tiny.task(share), rounds=3, local_steps=1, **options)
        assert equal(whole.model, kept.model)
        assert not equal(whole.model, fresh.model)


@pytest.mark.parametrize("uplink", ["scalars", "weights"])
def test_a_local_epoch_has_as_many_steps_as_a_client_has_batches(uplink: str) -> None:
    """Shares of 10, 4, 1 and 6 samples at batch 4: 3, 1, 1 and 2 steps, the last ones short."""
    shares = [tiny.samples(n, seed) for seed, n in enumerate((10, 4, 1, 6))]
    trial = train(
        tiny.task(shares), rounds=2, local_steps=0, mean="samples", uplink=uplink, probes=2
    )
    ledger = trial.strategy.ledger
    assert (ledger.samples, trial.total("replies"), trial.total("rejected")) == (42, 8, 0)
    assert ledger.up["smashed"] == 42 * 4 * CUT
    assert ledger.up["scalars"] == (2 * 7 * 2 * 4 if uplink == "scalars" else 0)
    told = (c["config"] for kind, _, c in trial.grid.requests if kind == "local")
    # What does not change is told once.
    assert sorted(int(terms["steps"]) for terms in told if "steps" in terms) == [1, 1, 2, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_whose_scalars_are_not_finite_is_skipped_on_both_sides(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = loss_scalars, 0

    def spoiled(*given: Any, **named: Any) -> Tensor:
        nonlocal calls
        calls += 1
        found = own(*given, **named)
        if calls % 3 == 2:  # of each client's three steps the second
            found[0] = value
        return found

    monkeypatch.setattr(client, "loss_scalars", spoiled)
    trials = []
    for uplink in ("scalars", "weights"):
        calls = 0
        trials.append(train(probes=2, client_optimizer="adam", uplink=uplink))
    assert equal(all_of(trials[0]), all_of(trials[1]))
    for trial in trials:
        assert trial.total("replies") == 12
        assert [mask.tolist() for mask in sent(trial, "taken")] == [[1, 0, 1]] * 12
        assert trial.strategy.ledger.up["smashed"] == 12 * 3 * 4 * 4 * CUT
        assert "4 local steps were skipped: a loss was not finite." in trial.notes
    assert all(np.isfinite(v).all() and not v[1].any() for v in sent(trials[0], "scalars"))


def test_skipped_steps_take_no_step_of_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(loss: Any, vector: Any, directions: list[Any], *rest: Any, **named: Any) -> Tensor:
        return torch.full((len(directions),), float("nan"))

    monkeypatch.setattr(client, "loss_scalars", spoiled)
    trial = open_run(client_optimizer="adamw", client_weight_decay=1.0, rounds=1)
    before = all_of(trial)
    after = all_of(start(trial))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"first.weight", "first.bias", "head.fc.weight", "head.fc.bias"}


def test_rounds_follow_the_schedule_of_the_learning_rate() -> None:
    trial = train(rounds=4, client_lr=0.4, client_lr_schedule="linear")
    rates = [record.extra["client_lr"] for record in trial.strategy.records[1:]]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert all(np.isfinite(r.extra["local_loss"]) for r in trial.strategy.records[1:])


@pytest.mark.parametrize("head_trainer", ["client", "server"])
def test_a_checkpoint_holds_the_head_once(head_trainer: str) -> None:
    options: dict[str, Any] = {
        "client_optimizer": "adam", "head_trainer": head_trainer, "server_momentum": 0.9,
    }  # fmt: skip
    trial = train(**options, rounds=2)
    tensors, values = trial.strategy.checkpoint()
    head = trial.strategy.head.state_dict()
    for value in head.values():
        same = [t for t in tensors.values() if t.shape == value.shape and torch.equal(t, value)]
        assert len(same) == 1
    again = open_run(**options, rounds=4)
    again.strategy.resume(tensors, values)
    assert equal(all_of(again), all_of(trial))
    assert equal(all_of(start(again)), all_of(train(**options, rounds=4)))


def test_it_learns() -> None:
    trial = train(
        tiny.task(clients=4, each=32), rounds=40, batch_size=16, probes=8, client_lr=0.1,
        server_lr=0.3, server_momentum=0.9, local_steps=2,
    )  # fmt: skip
    first, last = trial.strategy.records[0].metrics, trial.strategy.records[-1].metrics
    assert last["loss"] < 0.8 * first["loss"]
    assert last["accuracy"] > 0.6


def test_simulate_runs_it_inline() -> None:
    result = simulate(
        "digits", "heron", backend="inline", rounds=2, clients=3, batch_size=8, local_steps=2
    )
    assert [record.replies for record in result.history] == [0, 3, 3]
    assert np.isfinite(result.summary.metrics["loss"])


# Clients that fail, lie, or come late


def array(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[RecordDict], RecordDict]:
    def change(content: RecordDict) -> RecordDict:
        return changed(
            content, arrays={name: make(values(content.array_records["arrays"][name]).copy())}
        )

    return change


def put(name: str, value: Any) -> Callable[[RecordDict], RecordDict]:
    return lambda content: changed(content, arrays={name: value})


def spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(old: np.ndarray) -> np.ndarray:
        new = old.astype(np.int64) if old.dtype.kind in "iu" else old
        new.reshape(-1)[1] = value
        return new

    return make


def fewer_steps(content: RecordDict) -> RecordDict:
    arrays = content.array_records["arrays"]
    cut: dict[str, Any] = {name: values(arrays[name])[:-1].copy() for name in ("scalars", "taken")}
    return changed(content, arrays=cut)


def fewer_uploads(content: RecordDict) -> RecordDict:
    arrays = content.array_records["arrays"]
    return changed(
        content,
        arrays={
            "z": values(arrays["z"])[:-4].copy(),
            "y": values(arrays["y"])[:-4].copy(),
            "sizes": values(arrays["sizes"])[:-1].copy(),
        },
    )


def no_steps(content: RecordDict) -> RecordDict:
    return changed(
        content,
        arrays={"scalars": np.zeros((0, 1), np.float32), "taken": np.zeros(0, np.uint8)},
    )


def nothing(content: RecordDict) -> RecordDict:
    return changed(
        content,
        arrays={
            "z": np.zeros((0, CUT), np.float32),
            "y": np.zeros(0, np.int64),
            "sizes": np.zeros(0, np.int64),
        },
    )


LIES: dict[str, tuple[Callable[[RecordDict], RecordDict], str]] = {
    "round": (lambda c: changed(c, config={"round": 9}), "it answers round 9, asked was round 2"),
    "fewer probes": (array("scalars", lambda v: v[:, :0]), "scalars of shape"),
    "more probes": (array("scalars", lambda v: np.tile(v, (1, 2))), r"scalars of shape \(3, 2\)"),
    "other steps": (
        array("scalars", lambda v: v[:-1]),
        r"scalars of shape \(2, 1\), asked was \(3, 1\)",
    ),
    "scalar dimensions": (array("scalars", lambda v: v[0]), "expected 2 dimensions"),
    "scalar dtype": (array("scalars", lambda v: v.astype(np.float64)), "'scalars' as float64"),
    "no scalars": (put("scalars", None), "it has scalars of shape none, asked was"),
    "nan": (array("scalars", spoil(np.nan)), "'scalars' that is not finite"),
    "inf": (array("scalars", spoil(np.inf)), "'scalars' that is not finite"),
    "huge": (array("scalars", spoil(1e5)), r"\|v\| / mu = 1e\+07, more than scalar-limit = 1e\+06"),
    "fewer steps": (fewer_steps, "it has 2 local steps, asked were 3"),
    "no steps": (no_steps, "it has 0 local steps, asked were 3"),
    "taken": (put("taken", np.array([1, 2, 1], np.uint8)), "which steps it took"),
    "taken dtype": (put("taken", np.ones(3, np.int64)), "'taken' as int64"),
    "no taken": (put("taken", None), "which steps it took"),
    "fewer uploads": (fewer_uploads, "smashed data of 2 mini-batches, asked were 3"),
    "nothing": (nothing, "smashed data of 0 mini-batches, asked were 3"),
    "label": (array("y", spoil(3)), "a label is 3, the task has classes 0 to 2"),
    "negative label": (array("y", spoil(-1)), "a label is -1"),
    "z": (array("z", spoil(np.nan)), "'z' that is not finite"),
    "z shape": (array("z", lambda z: z[:, :-1]), r"expected \[n, 5\]"),
    "one large batch": (put("sizes", np.array([10, 1, 1], np.int64)), "mini-batch of 10 samples"),
    "samples": (
        lambda c: changed(c, metrics={"num-examples": 10**9}),
        "it says 1000000000 samples; 3 steps of this client are 12",
    ),
    "weights": (put("weights.float32", np.zeros(35, np.float32)), "hold the dtypes"),
    "head weights": (put("head.float32", np.zeros(18, np.float32)), "hold the dtypes"),
    "unknown": (put("x", np.zeros(3, np.float32)), "unknown entries: x"),
    "loss": (lambda c: changed(c, config={"loss": float("nan")}), "has loss=nan"),
}

WITHOUT: dict[str, dict[str, Tensor]] = {}


def without(uplink: str) -> dict[str, Tensor]:
    """Return what a run gives in which client 1 does not answer in round 2."""
    if uplink not in WITHOUT:
        faults = [Fault("raise", {1}, {2})]
        WITHOUT[uplink] = all_of(train(faults=faults, uplink=uplink, mean="samples"))
    return WITHOUT[uplink]


def as_if_silent(change: Any, says: str, uplink: str) -> None:
    faults = [Fault("change", {1}, {2}, change=change)]
    bad = train(faults=faults, uplink=uplink, mean="samples")
    assert [record.rejected for record in bad.strategy.records] == [0, 0, 1, 0]
    assert [record.replies for record in bad.strategy.records] == [0, 4, 3, 4]
    assert "The reply of client 1 is not used: " in bad.notes
    assert re.search(says, bad.notes), bad.notes
    assert equal(all_of(bad), without(uplink))  # θ_s took none of its batches
    assert bad.strategy.ledger.samples == 11 * 12


@pytest.mark.parametrize("name", LIES)
def test_a_bad_reply_is_as_if_it_had_not_come(name: str) -> None:
    as_if_silent(*LIES[name], "scalars")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (array("weights.float32", spoil(np.nan)), "not finite"),
        (array("weights.float32", lambda w: w[:-1]), "34 values of float32, this model has 35"),
        (array("head.float32", lambda w: w[:-1]), "17 values of float32, this model has 18"),
        (put("head.float32", None), "hold the dtypes"),
        (put("scalars", np.zeros((3, 1), np.float32)), "does not bring weights"),
        (put("taken", np.ones(2, np.uint8)), "it has 2 local steps, asked were 3"),
    ],
)
def test_bad_weights_are_as_if_they_had_not_come(change: Any, says: str) -> None:
    as_if_silent(change, says, "weights")


def test_a_batch_that_the_server_half_cannot_use_is_left_out_and_reported() -> None:
    fault = Fault("change", {1}, {2}, change=array("z", lambda z: z * np.float32(3e38)))
    trial = train(tiny.task(build=tiny.with_batch_norm), [fault])
    assert trial.total("rejected") == 1
    assert all(torch.isfinite(value).all() for value in all_of(trial).values())


def test_scalars_that_lead_out_of_float32_are_refused_before_the_server_half_steps() -> None:
    fault = Fault("change", {1}, {2}, change=array("scalars", spoil(3e38)))
    trial = train(faults=[fault], scalar_limit=1e60, mean="samples", outlier_factor=0)
    assert trial.total("rejected") == 1
    assert "parameters that are not finite" in trial.notes
    assert equal(all_of(trial), without("scalars"))


def test_a_local_loss_that_is_not_finite_costs_the_client_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, calls = Uploads.note, 0

    def note(uploads: Any, loss: Tensor) -> None:
        nonlocal calls
        calls += 1
        own(uploads, loss * (float("nan") if calls == 13 else 1.0))

    monkeypatch.setattr(Uploads, "note", note)
    trial = train()
    assert [record.failures for record in trial.strategy.records] == [0, 0, 1, 0]
    assert "The local loss is nan; lower client-lr" in trial.notes


# What is refused before anything is trained


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local_steps": -1}, r"local_steps is -1; it must be in \[0, 1000000\]"),
        ({"upload_every": 0}, r"upload_every is 0; it must be in \[1, 1000000\]"),
        ({"local_steps": 2, "upload_every": 3}, r"upload_every is 3, .* 2 local .* in \[1, 2\]"),
        ({"probes": 0}, r"probes is 0; it must be in \[1, 4096\]"),
        ({"mu": 0.0}, r"mu is 0\.0; it must be in \[1e-12, 1e\+06\]"),
        ({"mu": float("nan")}, "mu is nan; it must be in"),
        ({"direction": "cauchy"}, "direction is 'cauchy'; .*rademacher, gaussian, sphere"),
        ({"estimator": "x"}, "estimator is 'x'; it must be one of forward, central"),
        ({"client_optimizer": "lion"}, "client_optimizer is 'lion'; .*sgd, momentum, adam, adamw"),
        ({"client_lr": -1.0}, r"client_lr is -1\.0; it must be in"),
        ({"client_lr": float("nan")}, "client_lr is nan"),
        ({"client_momentum": 1.0}, r"client_momentum is 1\.0; it must be in \[0, 0\.9999\]"),
        ({"client_weight_decay": 1e9}, r"client_weight_decay is 1000000000\.0; .* in \[0, 1000\]"),
        ({"client_weight_decay": -1.0}, "client_weight_decay is -1"),
        ({"client_lr_schedule": "steps"}, "client_lr_schedule is 'steps'; it must be one of"),
        ({"client_lr_warmup": -1}, "client_lr_warmup is -1"),
        ({"client_state": "lost"}, "client_state is 'lost'; it must be one of fresh, kept"),
        ({"head_init": "zero"}, "head_init is 'zero'; it must be one of random, copy"),
        ({"uplink": "smoke"}, "uplink is 'smoke'; it must be one of weights, scalars"),
        ({"scalar_limit": -1.0}, "scalar_limit is -1"),
        ({"head_trainer": "nobody"}, "head_trainer is 'nobody'; .* one of client, server"),
        ({"head_lr": -1.0}, r"head_lr is -1\.0; it must be finite, at least 0"),
        (
            {"uplink": "scalars", "client_state": "kept", "client_optimizer": "adam"},
            "uplink=scalars with client_state=kept and client_optimizer=adam.*use client_state",
        ),
        ({"client_heads": 2}, "Unknown option of method 'heron' 'client-heads'; legal are"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options({"method": "heron", **options})


def narrow() -> nn.Module:
    return nn.Linear(CUT, tiny.CLASSES - 1)


@pytest.mark.parametrize("method", ["heron", "cse_fsl"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "linar"}, "head is 'linar'; it must be one of linear"),
        ({"head": "pooled"}, r"needs smashed data \[N, C, H, W\]"),
        ({"head": "blocks:nowhere"}, "head is 'blocks:nowhere', but"),
        ({"head": "task"}, r"gives \[N, 2\].*it must give \[N, 3\]"),
        ({"head": "linear", "head_init": "copy"}, "no layer of the server half to copy"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    method: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(CutError, match=says):
        begin(tiny.task(head=narrow), method, **options)


@pytest.mark.parametrize("method", ["heron", "cse_fsl"])
def test_a_client_half_with_nothing_to_train_is_refused(method: str) -> None:
    def still() -> nn.Module:
        model = tiny.model()
        model.get_submodule("first").requires_grad_(False)
        return model

    with pytest.raises(CutError, match=r"up to 'act' has no trainable parameter.*cut at a later"):
        begin(tiny.task(build=still), method)


@pytest.mark.parametrize("sampled", [0, 1])
def test_c3_k_beyond_a_clients_local_epoch_leaves_that_client_out(sampled: int) -> None:
    """What one node says of its samples ends no run."""
    shares = [tiny.samples(n, n) for n in (12, 12, 12, 4)]
    trial = open_run(tiny.task(shares), local_steps=0, upload_every=2, sampled=sampled)
    start(trial)
    says = "it holds 4 samples, too few for the method's settings: upload_every is 2, but a client"
    assert says in trial.notes
    assert not [client for kind, client in trial.grid.log if kind != "join" and client == 3]
    assert all(record.replies == (sampled or 3) for record in trial.strategy.records[1:])


def test_a_round_without_clients_is_a_round_without_replies() -> None:
    trial = open_run()
    exchange = Exchange(trial.grid, trial.strategy.ledger, 1.0, {}, "heron", str)
    outcome = trial.strategy.train_round(1, [], exchange)
    assert (outcome.losses, outcome.samples) == ([], 0)
