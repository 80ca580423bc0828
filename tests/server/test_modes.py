"""Modules train in the modes in which the task built them, on both sides, in every method."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from sfl_flower.data import model_seed
from sfl_flower.methods import METHODS
from sfl_flower.run.terms import terms
from tests import tiny
from tests.tiny import begin, train

pytestmark = pytest.mark.flower


def model(trains: bool) -> nn.Module:
    """Return a model with BatchNorm and dropout behind the cut (`act`), as `from_pretrained`."""
    whole = nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            act=nn.Tanh(),
            hidden=nn.Linear(tiny.CUT, 4),
            norm=nn.BatchNorm1d(4),
            drop=nn.Dropout(0.5),
            out=nn.Linear(4, tiny.CLASSES),
        )
    )
    whole.get_submodule("norm").train(trains)
    whole.get_submodule("drop").train(trains)
    return whole


WHOLE = ("decomfl",)  # forwards of the whole model on a client cannot move statistics


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WHOLE])
def test_e7_statistics_in_eval_mode_stay_as_they_were_built(method: str) -> None:
    trial = train(tiny.task(build=lambda: model(trains=False)), method, rounds=2)
    found = trial.strategy.server.module.state_dict()
    assert torch.equal(found["norm.running_mean"], torch.zeros(4))
    assert torch.equal(found["norm.running_var"], torch.ones(4))
    assert int(found["norm.num_batches_tracked"]) == 0


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WHOLE])
def test_e7_statistics_in_train_mode_move(method: str) -> None:
    trial = train(tiny.task(build=lambda: model(trains=True)), method, rounds=2)
    found = trial.strategy.server.module.state_dict()
    assert int(found["norm.num_batches_tracked"]) > 0
    assert not torch.equal(found["norm.running_mean"], torch.zeros(4))


@pytest.mark.parametrize("method", METHODS)
def test_d2_every_method_runs_with_its_client_half_in_eval_mode(method: str) -> None:
    problem = tiny.task(build=tiny.with_batch_norm)
    trial = train(problem, method, rounds=2, client_mode="eval")
    assert [r.failures + r.rejected for r in trial.strategy.records] == [0] * 3
    found = trial.strategy.client_half.state_dict()
    assert torch.equal(found["norm.running_mean"], torch.zeros(tiny.CUT))
    assert int(found["norm.num_batches_tracked"]) == 0
    assert terms(trial.strategy, [])["client_mode"] == "eval"
    # And a run in the mode of the task, in the same process, is not touched by it.
    if trial.strategy.facts.client == "first order":
        again = train(problem, method, rounds=2).strategy
        assert int(again.client_half.state_dict()["norm.num_batches_tracked"]) > 0
        assert terms(again, [])["client_mode"] == "train"


def test_e7_dropout_in_eval_mode_is_off_in_the_server_half() -> None:
    z, y = np.full((4, tiny.CUT), 0.5, np.float32), np.zeros(4, np.int64)
    for trains in (False, True):
        strategy = begin(tiny.task(build=lambda trains=trains: model(trains))).strategy  # type: ignore[misc]
        strategy.evaluate_model()  # in eval mode, for its length
        losses = {strategy.server.gradients(z, y, (1, client, 0)).loss for client in range(4)}
        assert len(losses) == (4 if trains else 1)


def test_e7_a_head_of_the_server_halfs_layers_has_their_modes() -> None:
    for trains in (False, True):
        problem = tiny.task(build=lambda trains=trains: model(trains))  # type: ignore[misc]
        head = problem.build_head(model_seed(0), "server")
        modes = {type(part): part.training for part in head.modules()}
        assert modes[nn.Dropout] is trains and modes[nn.BatchNorm1d] is trains
