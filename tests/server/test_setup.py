"""Micro-batches are refused before training where parts of a mini-batch would not be the whole."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.task import Samples, SplitTask
from tests import tiny
from tests.tiny import begin, equal, train

FIRST_ORDER = [name for name, method in METHODS.items() if method.facts.client == "first order"]


@pytest.mark.parametrize("method", [*FIRST_ORDER, "heron", "frozen"])
def test_batch_norm_in_train_mode_is_refused_and_in_eval_mode_is_not(method: str) -> None:
    problem = tiny.task(build=tiny.with_batch_norm)
    says = (
        r"^micro_batch is '2', but 'norm' of the client half needs the whole mini-batch: "
        r"BatchNorm1d in train mode .*; set client-mode=eval .* GroupNorm instead, or leave "
        r"micro_batch at all\.$"
    )
    with pytest.raises(ConfigError, match=says):
        begin(problem, method, micro_batch=2)
    begin(problem, method, micro_batch=2, client_mode="eval")
    begin(problem, method, micro_batch=5)  # more than any mini-batch: all at once


def test_batch_norm_of_a_head_is_refused_with_another_head() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                first=nn.Linear(tiny.FEATURES, tiny.CUT),
                act=nn.Tanh(),
                norm=nn.BatchNorm1d(tiny.CUT),
                out=nn.Linear(tiny.CUT, tiny.CLASSES),
            )
        )

    says = r"'norm' of the auxiliary head needs .*; take head=linear or pooled"
    with pytest.raises(ConfigError, match=says):
        begin(tiny.task(build=build), "cse_fsl", micro_batch=2, head="server")
    begin(tiny.task(build=build), "cse_fsl", micro_batch=2)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


def test_a_half_of_ones_own_that_mixes_samples_is_refused() -> None:
    def build() -> nn.Module:
        first, last = nn.Linear(tiny.FEATURES, tiny.CUT), nn.Linear(tiny.CUT, tiny.CLASSES)
        return nn.Sequential(OrderedDict(first=first, act=Centred(), out=last))

    says = "the client half of task 'tiny' gives other smashed data for a sample alone"
    with pytest.raises(ConfigError, match=says):
        begin(tiny.task(build=build), "splitfed_v2", micro_batch=2)


def test_a_loss_that_is_no_mean_is_refused_where_clients_compute_it() -> None:
    def weighted(output: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(output, y, weight=torch.tensor([1.0, 5.0, 25.0]))

    says = "the loss of task 'tiny' is not the mean over the labels of a batch"
    for method in ("cse_fsl", "fedavg"):
        with pytest.raises(ConfigError, match=says):
            begin(tiny.task(loss=weighted), method, micro_batch=2)
    begin(tiny.task(loss=weighted), "splitfed_v2", micro_batch=2)  # the server has whole batches


@pytest.mark.parametrize("method", ["splitfed_v2", "cse_fsl"])
def test_dropout_follows_the_samples_that_run_together(method: str) -> None:
    def build() -> nn.Module:
        first, last = nn.Linear(tiny.FEATURES, tiny.CUT), nn.Linear(tiny.CUT, tiny.CLASSES)
        return nn.Sequential(OrderedDict(first=first, act=nn.Dropout(0.5), out=last))

    models = []
    for noise in (1, 2):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(noise)  # what else the process drew is no matter
            models.append(train(tiny.task(build=build), method, rounds=2, micro_batch=3).model)
    assert equal(*models)
    assert not equal(models[0], train(tiny.task(build=build), method, rounds=2).model)


def test_positions_that_do_not_count_weigh_nothing() -> None:
    """Labels [4, 3] of which rows have 1, 3, 2 and 2 that count: no mean over samples."""
    x = torch.linspace(-1, 1, 4 * 3 * tiny.FEATURES).reshape(4, 3, tiny.FEATURES).sin()
    y = torch.tensor([[2, -100, -100], [0, 1, 2], [1, 1, -100], [-100, 2, 0]])

    def build() -> nn.Module:
        first, last = nn.Linear(tiny.FEATURES, tiny.CUT), nn.Linear(tiny.CUT, tiny.CLASSES)
        return nn.Sequential(OrderedDict(first=first, act=nn.Tanh(), out=last))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(output.flatten(0, -2), y.flatten())

    def problem() -> SplitTask:
        share = Samples(x, y)
        return tiny.task([share, share], build, test=lambda: share, loss=loss, ignore_label=-100)

    options: dict[str, Any] = {"rounds": 2, "clients": 2}
    for method in ("cse_fsl", "fedavg", "heron", "decomfl"):
        whole = train(problem(), method, **options).model
        for size in (1, 3):
            parts = train(problem(), method, micro_batch=size, **options).model
            for name, value in whole.items():
                assert torch.allclose(value, parts[name], rtol=1e-3, atol=1e-4), (method, name)
