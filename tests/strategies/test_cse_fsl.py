"""CSE-FSL against a loop written out in torch, and what it does when clients fail."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.data import batch_indices, client_key
from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.node import local_loss as shared
from sfl_flower.task import Samples, SplitTask
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import CUT, Trial, begin, equal, start

BASE: dict[str, Any] = {
    "local_steps": 4,
    "upload_every": 2,
    "head": "linear",
    "client_optimizer": "sgd",
    "client_lr": 0.1,
    "client_momentum": 0.5,
    "client_weight_decay": 0.01,
    "client_state": "fresh",
    "server_lr": 0.2,
    "server_momentum": 0.9,
}


def open_run(problem: SplitTask | None = None, faults: Any = (), **options: Any) -> Trial:
    return begin(problem or tiny.task(), "cse_fsl", faults, **{**BASE, **options})


def train(problem: SplitTask | None = None, faults: Any = (), **options: Any) -> Trial:
    return start(open_run(problem, faults, **options))


def all_of(trial: Trial) -> dict[str, Tensor]:
    """Return client half, server half and head."""
    head = {f"head.{k}": v.clone() for k, v in trial.strategy.head.state_dict().items()}
    return {k: v.clone() for k, v in trial.model.items()} | head


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def mean(states: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    total = sum(weights)
    parts = zip(states, weights, strict=True)
    sums = [{k: v.double() * (w / total) for k, v in state.items()} for state, w in parts]
    return {
        k: sum((part[k] for part in sums), start=torch.zeros(())).to(value.dtype)
        for k, value in states[0].items()
    }


def by_hand(
    trial: Trial,
    shares: list[Samples],
    rounds: int,
    optimizer: str = "sgd",
    h: int = 4,
    k: int = 2,
    by_samples: bool = False,
    absent: Mapping[int, int] | None = None,
) -> dict[str, Tensor]:
    """Train as CSE-FSL does, with torch alone; `absent` names a client by round."""
    client = copy.deepcopy(trial.strategy.client_half)
    server = copy.deepcopy(trial.strategy.server.module)
    head = copy.deepcopy(trial.strategy.head)
    sgd = torch.optim.SGD(server.parameters(), lr=0.2, momentum=0.9)
    for round in range(1, rounds + 1):
        clients, heads, weights = [], [], []
        for number, share in enumerate(shares):
            if (absent or {}).get(round) == number:
                continue
            own, aux = copy.deepcopy(client), copy.deepcopy(head)
            parameters = [*own.parameters(), *aux.parameters()]
            local: torch.optim.Optimizer
            if optimizer == "sgd":
                local = torch.optim.SGD(parameters, lr=0.1, momentum=0.5, weight_decay=0.01)
            else:
                kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
                local = kind(parameters, lr=0.1, weight_decay=0.01)
            seen = 0
            for m in range(h):
                rows = batch_indices(client_key(0, number), round, m, len(share), 4).copy()
                x, y = share.x[rows], share.y[rows]
                seen += len(y)
                z = own(x)
                upload = z.detach().clone()
                step(local, functional.cross_entropy(aux(z), y))
                if m % k == 0:  # nothing comes back: the server may as well step at once
                    step(sgd, functional.cross_entropy(server(upload), y))
            clients.append(own.state_dict())
            heads.append(aux.state_dict())
            weights.append(float(seen) if by_samples else 1.0)
        client.load_state_dict(mean(clients, weights))
        head.load_state_dict(mean(heads, weights))
    aux_state = {f"head.{name}": value for name, value in head.state_dict().items()}
    return {**client.state_dict(), **server.state_dict(), **aux_state}


def agree(trial: Trial, expected: dict[str, Tensor]) -> None:
    found = all_of(trial)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-6, msg=name)


TWO = [tiny.samples(10, 1), tiny.samples(6, 2)]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_two_clients_by_hand(optimizer: str, k: int) -> None:
    options: dict[str, Any] = {"clients": 2, "client_optimizer": optimizer, "upload_every": k}
    trial = open_run(tiny.task(TWO), **options)
    expected = by_hand(trial, TWO, 3, optimizer, k=k)
    before = all_of(trial)
    start(trial)
    agree(trial, expected)
    assert all(float((expected[n] - before[n]).abs().max()) > 1e-3 for n in before)


def test_two_clients_by_hand_with_batch_norm() -> None:
    trial = open_run(
        tiny.task(TWO, build=tiny.with_batch_norm), clients=2, rounds=2, upload_every=1
    )
    expected = by_hand(trial, TWO, 2, k=1)
    agree(start(trial), expected)
    assert int(trial.model["norm.num_batches_tracked"]) == 2 * 4  # a client's, averaged
    assert int(trial.model["norm2.num_batches_tracked"]) == 2 * 4 * 2  # the server's, of all


def test_two_clients_by_hand_with_a_head_that_is_frozen_in_part() -> None:
    """A layer that never travels: clients whose head were another would step elsewhere."""

    def build() -> nn.Module:
        model = tiny.model()
        model.get_parameter("hidden.weight").requires_grad_(False)
        return model

    options: dict[str, Any] = {"clients": 2, "head": "blocks:act2", "head_init": "random"}
    trial = open_run(tiny.task(TWO, build=build), **options)
    expected = by_hand(trial, TWO, 3)
    agree(start(trial), expected)
    assert trial.strategy.ledger.up["auxiliary"] == 2 * 3 * 4 * (4 + 4 * 3 + 3)


def test_a_mean_by_samples_by_hand() -> None:
    trial = open_run(tiny.task(TWO), clients=2, rounds=2, mean="samples")
    expected = by_hand(trial, TWO, 2, by_samples=True)
    uniform = by_hand(trial, TWO, 2)
    agree(start(trial), expected)
    assert not torch.allclose(expected["first.weight"], uniform["first.weight"], atol=1e-4)


@pytest.mark.parametrize("kind", ["drop", "raise", "late"])
def test_a_client_that_does_not_answer_leaves_the_loop_without_it(kind: str) -> None:
    trial = open_run(tiny.task(TWO), [Fault(kind, {0}, {2})], clients=2, rounds=3)
    expected = by_hand(trial, TWO, 3, absent={2: 0})
    agree(start(trial), expected)
    assert [record.replies for record in trial.strategy.records] == [0, 2, 1, 2]
    assert trial.total("failures") == 1


def test_the_servers_pass_goes_by_partition_whatever_the_order_of_replies() -> None:
    trials = []
    for seed in range(3):
        trial = open_run()
        trial.grid._rng.seed(seed)
        trials.append(all_of(start(trial)))
    assert equal(trials[0], trials[1]) and equal(trials[0], trials[2])


@pytest.mark.parametrize("averaging", ["uniform", "samples"])
def test_duplicated_clients_change_no_client_half_and_no_head(averaging: str) -> None:
    """One batch a client. θ_s is left out: it takes a step for each upload, so twice as many."""
    shares = [tiny.samples(n, n) for n in (1, 2, 4)]
    options: dict[str, Any] = {"server_lr": 0.0, "mean": averaging, "rounds": 2}
    before = all_of(open_run(tiny.task(shares), clients=3, **options))
    once = all_of(train(tiny.task(shares), clients=3, **options))
    twice = all_of(train(tiny.task(shares + shares), clients=6, **options))
    for name in ("first.weight", "first.bias", "head.fc.weight", "head.fc.bias"):
        moved = float((once[name] - before[name]).norm())
        assert moved > 1e-2
        assert float((once[name] - twice[name]).norm()) <= 2e-5 * moved


def test_uploads_are_pre_step() -> None:
    """A16: z of step m comes from the weights after m steps."""
    share = tiny.samples(8)
    trial = open_run(tiny.task([share]), clients=1, rounds=1, upload_every=1, local_steps=2)
    half = copy.deepcopy(trial.strategy.client_half)
    start(trial)
    ((_, _, reply),) = [r for r in trial.grid.replies if r[0] == "local"]
    z = values(reply["arrays"]["z"])
    rows = batch_indices(client_key(0, 0), 1, 0, 8, 4).copy()
    with torch.no_grad():
        np.testing.assert_array_equal(z[:4], half(share.x[rows]).numpy())
        again = batch_indices(client_key(0, 0), 1, 1, 8, 4).copy()
        assert not np.allclose(z[4:], half(share.x[again]).numpy(), atol=1e-4)


def test_nothing_comes_back_within_a_round() -> None:
    trial = train(rounds=2)
    assert trial.grid.log == {("join", c): 1 for c in range(4)} | {
        ("local", c): 2 for c in range(4)
    }
    assert trial.strategy.ledger.down["gradients"] == 0
    assert trial.strategy.ledger.samples == 2 * 4 * 4 * 4  # uploaded or not
    assert trial.strategy.ledger.up["smashed"] == 2 * 4 * 2 * 4 * 4 * CUT


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_kept_optimizer_state_goes_on_over_rounds(optimizer: str) -> None:
    share = [tiny.samples(1)]
    options: dict[str, Any] = {
        "clients": 1, "server_lr": 0.0, "client_optimizer": optimizer, "upload_every": 1,
    }  # fmt: skip
    whole = train(tiny.task(share), rounds=1, local_steps=3, **options)
    kept = train(tiny.task(share), rounds=3, local_steps=1, client_state="kept", **options)
    fresh = train(tiny.task(share), rounds=3, local_steps=1, **options)
    names = sorted(whole.model)
    assert torch.allclose(tiny.flat(whole.model, names), tiny.flat(kept.model, names), atol=1e-7)
    assert not torch.allclose(tiny.flat(whole.model, names), tiny.flat(fresh.model, names))


@pytest.mark.parametrize("method", ["cse_fsl", "heron"])
def test_a_round_that_fails_leaves_the_kept_state_as_it_was(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A state in a file would not go back by itself, and one of NaN would never heal."""
    monkeypatch.setenv("SFL_STATE_LIMIT", "0")
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path))
    own, calls = shared.Uploads.note, 0

    def note(uploads: Any, loss: Tensor) -> None:
        nonlocal calls
        calls += 1
        own(uploads, loss * (float("nan") if calls == 2 else 1.0))

    monkeypatch.setattr(shared.Uploads, "note", note)
    options: dict[str, Any] = {
        **BASE, "clients": 1, "local_steps": 1, "upload_every": 1, "rounds": 2,
        "client_state": "kept", "client_optimizer": "adam",
    }  # fmt: skip
    if method == "heron":
        options["uplink"] = "weights"
    trial = begin(tiny.task([tiny.samples(1)]), method, **options)
    kept = []
    trial.strategy.account._on_round = lambda record: kept.append(
        {p.name: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    )
    start(trial)
    assert [record.failures for record in trial.strategy.records] == [0, 0, 1]
    assert kept[0] == {} != kept[1]
    assert kept[1] == kept[2]


class Scaled(nn.Module):
    """A layer with a parameter and no `reset_parameters`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((CUT,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def with_scale() -> nn.Module:
    first, act, hidden, act2, out = tiny.model().children()
    return nn.Sequential(
        OrderedDict(first=first, act=act, scale=Scaled(), hidden=hidden, act2=act2, out=out)
    )


@pytest.mark.parametrize("method", ["cse_fsl", "heron"])
def test_a_copied_head_needs_no_layer_that_can_be_drawn_anew(method: str) -> None:
    problem = tiny.task(build=with_scale)
    options: dict[str, Any] = {"head": "blocks:act2", "head_init": "copy", "local_steps": 2}
    trial = begin(problem, method, **options)
    head = trial.strategy.head.state_dict()
    server = trial.strategy.server.module.state_dict()
    assert torch.equal(head["blocks.hidden.weight"], server["hidden.weight"])
    start(trial)
    assert trial.total("replies") == 12


def test_a_client_that_lies_about_its_samples_is_left_out() -> None:
    def lie(content: Any) -> Any:
        return changed(content, metrics={"num-examples": 10**12})

    trial = train(faults=[Fault("change", {1}, {2}, change=lie)], mean="samples")
    silent = train(faults=[Fault("raise", {1}, {2})], mean="samples")
    assert "it says 1000000000000 samples; 4 steps of this client are 16" in trial.notes
    assert equal(all_of(trial), all_of(silent))


def test_scalars_are_not_taken_for_weights() -> None:
    def scalars(content: Any) -> Any:
        return changed(content, arrays={"scalars": np.zeros((4, 1), np.float32)})

    trial = train(faults=[Fault("change", {1}, {2}, change=scalars)])
    assert trial.total("rejected") == 1
    assert "it brings scalars, asked were weights" in trial.notes


def test_a_checkpoint_holds_the_head() -> None:
    trial = train(rounds=2)
    again = open_run(rounds=4)
    again.strategy.resume(*trial.strategy.checkpoint())
    assert equal(all_of(again), all_of(trial))
    assert equal(all_of(start(again)), all_of(train(rounds=4)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local_steps": 2, "upload_every": 3}, r"upload_every is 3, .* in \[1, 2\]"),
        ({"client_optimizer": "momentum"}, "client_optimizer is 'momentum'; .*sgd, adam, adamw"),
        ({"client_lr": float("inf")}, "client_lr is inf; it must be in"),
        ({"probes": 3}, "Unknown option of method 'cse_fsl' 'probes'; legal are"),
        ({"uplink": "scalars"}, "Unknown option of method 'cse_fsl' 'uplink'; legal are"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options({"method": "cse_fsl", **options})
