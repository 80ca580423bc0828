"""Finite weights that no training leads to, and means that would ruin the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.data import model_seed
from sfl_flower.errors import WireError
from sfl_flower.server.received import check_bounds, finite_mean
from sfl_flower.server.tally import Tally
from tests import tiny
from tests.local_grid import Fault, changed
from tests.tiny import equal, train

pytestmark = pytest.mark.flower

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "cse_fsl": {},
    "fsl_sage": {},
    "heron": {"uplink": "weights"},
    "mu_splitfed": {},
    "splitfed_v1": {},
    "splitfed_v2": {},
    "zo_sfl": {},
}


def with_weight(index: int, value: float) -> Any:
    def change(content: Any) -> Any:
        old = content.array_records["arrays"].get("weights.float32")
        if old is None:
            return content
        new = old.numpy().copy()
        new[index] = value
        return changed(content, arrays={"weights.float32": new})

    return change


@pytest.mark.parametrize("method", METHODS)
def test_c6_finite_weights_that_no_training_leads_to_are_refused(method: str) -> None:
    fault = Fault("change", {1}, {2}, "", change=with_weight(7, 3e38))
    trial = train(tiny.task(), method, [fault], rounds=3, **METHODS[method])
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(4, 0), (3, 1), (4, 0)]
    assert "The reply of client 1 is not used: '" in trial.notes
    assert "first.weight' holds 3e+38, which no round of training leads to" in trial.notes
    assert "it must be in [-1e+04, 1e+04]" in trial.notes
    assert all(value.abs().max() < 100 for value in trial.model.values())


def test_c6_a_refused_reply_leaves_the_model_of_a_run_without_it() -> None:
    fault = Fault("change", {1}, {2}, "", change=with_weight(7, 3e38))
    missing = Fault("raise", {1}, {2}, "")
    runs = [train(tiny.task(), "fedavg", [each], rounds=3).model for each in (fault, missing)]
    assert equal(*runs)


def test_c6_a_negative_running_variance_is_refused() -> None:
    # first.bias, first.weight, norm.bias, norm.running_mean, norm.running_var, ...
    fault = Fault("change", {2}, {2}, "", change=with_weight(5 + 30 + 5 + 5 + 1, -1.0))
    trial = train(tiny.task(build=tiny.with_batch_norm), "cse_fsl", [fault], rounds=3)
    assert "client 2 is not used: 'norm.running_var' holds -1, " in trial.notes
    assert "it must be in [0, 1e+12]" in trial.notes
    assert all(torch.isfinite(value).all() for value in trial.model.values())


@pytest.mark.parametrize(
    ("name", "own", "legal", "illegal"),
    [
        ("a.weight", torch.ones(2), [-1e4, 1e4], [-1.1e4, 1.1e4, 3e38]),
        ("a.weight", torch.tensor([0.0, -50.0]), [-5e5, 4e5], [-6e5, 6e5]),
        ("a.running_mean", torch.zeros(2), [-1e12, 1e12], [-1e13, 3e38]),
        ("a.running_var", torch.ones(2), [0.0, 1e12], [-1e-6, 3e38]),
        ("a.num_batches_tracked", torch.tensor(3), [0, 2**53], [-1, 2**62]),
        ("a.offsets", torch.tensor([-4]), [-7, 7], [-(2**60)]),
        ("a.mask", torch.tensor([True]), [0, 1], []),
    ],
)
def test_c6_bounds_of_each_kind_of_tensor(
    name: str, own: Tensor, legal: list[float], illegal: list[float]
) -> None:
    for value in legal:
        check_bounds({name: torch.full_like(own, value)}, {name: own})
    for value in illegal:
        with pytest.raises(WireError, match=rf"'{name}' holds .* it must be in \["):
            check_bounds({name: torch.full_like(own, value)}, {name: own})


def halves() -> tuple[Any, nn.Module, nn.Module]:
    problem = tiny.task()
    built = problem.build(model_seed(0))
    return problem, built.client, built.server


def test_c6_a_mean_that_ruins_the_model_is_taken_back() -> None:
    problem, client, server = halves()
    before = {name: value.clone() for name, value in client.state_dict().items()}
    tally = Tally(replies=4)
    out = server.get_submodule("out").get_parameter("weight")
    with finite_mean(problem, tally, client, server), torch.no_grad():
        out[0], out[1] = 3e38, -3e38  # finite, the loss is not
        client.get_submodule("first").get_parameter("bias").add_(1.0)
    assert equal(client.state_dict(), before)
    assert float(out.detach().abs().max()) < 1
    assert tally.used == 0 and "The mean over clients is not used" in tally.notes[0]

    with finite_mean(problem, tally := Tally(replies=4), client, server), torch.no_grad():
        client.get_submodule("first").get_parameter("bias").add_(1.0)
    assert tally.used == 4 and not tally.notes
    assert not equal(client.state_dict(), before)


def test_c6_a_mean_is_not_blamed_for_a_loss_that_was_not_finite_before() -> None:
    problem, client, server = halves()
    with torch.no_grad():
        out = server.get_submodule("out").get_parameter("weight")
        out[0], out[1] = 3e38, -3e38
    with finite_mean(problem, tally := Tally(), client, server), torch.no_grad():
        client.get_submodule("first").get_parameter("bias").fill_(1.0)
    assert not tally.notes
    assert np.all(client.state_dict()["first.bias"].numpy() == 1.0)


def test_c6_a_mean_that_is_refused_every_round_ends_the_run() -> None:
    """A loss that is infinite for any weights but the first: no mean can be used."""
    problem = tiny.task()
    first = float(problem.build(model_seed(0)).client.get_parameter("first.bias")[0].detach())

    def loss(output: Tensor, y: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(output, y)
        own = trials[0].strategy.client_half.get_parameter("first.bias")[0]
        return value if output.requires_grad or float(own.detach()) == first else value / 0.0

    object.__setattr__(problem, "loss", loss)
    trials = [tiny.begin(problem, "fedavg", rounds=9, patience=2)]
    with pytest.raises(Exception, match=r"No usable reply in 2 rounds .*mean over clients is not"):
        tiny.start(trials[0])
