"""Models as people bring them, trained and saved."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sfl_flower.errors import CutError
from sfl_flower.methods import METHODS
from sfl_flower.task import Samples
from tests import tiny
from tests.tiny import train


class _Unused(nn.Module):
    """A model with a layer and a buffer that its forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(tiny.FEATURES, tiny.CUT), nn.Tanh()
        self.spare = nn.Linear(2, 2)
        self.register_buffer("steps", torch.tensor([3]))
        self.out = nn.Linear(tiny.CUT, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["ho_sfl", "splitfed_v2", "fedavg"])
def test_e12_a_saved_model_loads_strictly_into_the_whole_one(method: str) -> None:
    task = tiny.task(build=_Unused)
    trial = train(task, method, rounds=1)
    model = _Unused()
    model.load_state_dict(trial.model)
    assert torch.equal(model.get_buffer("steps"), torch.tensor([3]))
    built = task.whole(trial.strategy.config.model_seed).state_dict()
    assert torch.equal(trial.model["spare.weight"], built["spare.weight"])


def _words() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            embed=nn.Embedding(11, 4, sparse=True), flat=nn.Flatten(), first=nn.Linear(12, 5),
            act=nn.Tanh(), out=nn.Linear(5, 3),
        )
    )  # fmt: skip


def _ids(count: int, seed: int) -> Samples:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 11, (count, 3), generator=draw)
    return Samples(x, x.sum(dim=1) % 3)


@pytest.mark.parametrize("method", ["splitfed_v1", "splitfed_v2", "fedavg", "cse_fsl"])
def test_e12_sparse_embeddings_are_trained_by_first_order_clients(method: str) -> None:
    shares = [_ids(12, client) for client in range(4)]
    options: Any = {"client_momentum": 0.9} if method.startswith("splitfed") else {}
    trial = train(
        tiny.task(shares, build=_words, test=lambda: _ids(8, 9)), method, rounds=1, **options
    )
    assert trial.total("failures") + trial.total("rejected") == 0
    built = trial.strategy.task.whole(trial.strategy.config.model_seed).state_dict()
    assert not torch.equal(trial.model["embed.weight"], built["embed.weight"])


def test_e12_sparse_embeddings_behind_the_cut_are_trained_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(tiny.FEATURES, tiny.CUT), nn.Tanh()
            self.embed, self.out = nn.Embedding(3, 4, sparse=True), nn.Linear(9, tiny.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            z = self.act(self.first(x))
            return self.out(torch.cat([z, self.embed((z[:, 0] > 0).long())], dim=1))  # type: ignore[no-any-return]

    trial = train(tiny.task(build=Twice), "ho_sfl", rounds=1)
    assert trial.total("failures") + trial.total("rejected") == 0


def test_e12_clients_train_inside_a_profiler_of_torch(caplog: pytest.LogCaptureFixture) -> None:
    with profile(activities=[ProfilerActivity.CPU]):
        trial = train(tiny.task(), "ho_sfl", rounds=1)
    assert trial.total("failures") + trial.total("rejected") == 0
    assert trial.strategy.ledger.client_peak_bytes == 0


class _Kept(nn.Module):
    """A half that cannot be recorded: it asks for values."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        return z if float(x.detach().sum()) > 1e30 else torch.tanh(z)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_two_halves_that_cannot_be_recorded_are_trained_by_every_method(method: str) -> None:
    def build() -> nn.Module:
        return nn.Sequential(_Kept(tiny.FEATURES, tiny.CUT), _Kept(tiny.CUT, tiny.CLASSES))

    if method == "u_shaped":  # which cuts the server half once more
        with pytest.raises(CutError, match="no layer at which a tail could begin"):
            train(tiny.task(build=build, cut="0"), method, rounds=1)
        return
    trial = train(tiny.task(build=build, cut="0"), method, rounds=1)
    assert trial.total("failures") + trial.total("rejected") == 0
    assert trial.strategy.ledger.samples > 0


def test_a12_a_loss_that_has_exploded_is_noted() -> None:
    trial = train(tiny.task(), "splitfed_v2", rounds=2, server_lr=300.0, client_lr=300.0)
    first, last = trial.strategy.records[0].metrics, trial.strategy.records[-1].metrics
    assert last["loss"] > 10 * first["loss"]
    assert "times what it was before training" in trial.notes
    assert "training has diverged. Lower server-lr or client-lr" in trial.notes
    assert "diverged" not in train(tiny.task(), "splitfed_v2", rounds=2).notes
