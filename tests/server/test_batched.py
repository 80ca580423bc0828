"""Mini-batches of several clients in one forward and backward of the server half."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.config import RunConfig
from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.methods import read_options
from sfl_flower.server.batched import groups, run_together
from sfl_flower.server.trainer import Batch, Trainer
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, begin, equal, train

pytestmark = pytest.mark.flower

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""Sums of float32 over a few dozen samples, in another order."""
UNEVEN = [tiny.samples(count, seed) for seed, count in enumerate((12, 3, 8, 5))]
"""Four clients; with mini-batches of 4 some are short."""


def half(last: nn.Module | None = None) -> nn.Module:
    """Return a server half from the tiny cut to its classes."""
    layers = [nn.Linear(tiny.CUT, 4), nn.Tanh(), last or nn.Identity(), nn.Linear(4, tiny.CLASSES)]
    with seeded_torch("test"):
        for layer in (layers[0], layers[3]):
            layer.reset_parameters()  # type: ignore[operator]
    return nn.Sequential(*layers)


def batches(*sizes: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        (
            rng.standard_normal((size, tiny.CUT)).astype(np.float32),
            rng.integers(tiny.CLASSES, size=size),
            (1, client, 0),
        )
        for client, size in enumerate(sizes)
    ]


def trainer(module: nn.Module, **options: Any) -> Trainer:
    return Trainer(module, functional.cross_entropy, tiny.CLASSES, RunConfig(), **options)


def test_neighbours_are_grouped_up_to_the_most_samples() -> None:
    def grouped(sizes: list[int], most: int) -> list[list[int]]:
        return [sizes[group] for group in groups(sizes, most)]

    assert grouped([4, 4, 4, 4], 8) == [[4, 4], [4, 4]]
    assert grouped([4, 3, 2, 9, 1], 8) == [[4, 3], [2], [9], [1]]
    assert grouped([4, 3], 0) == [[4], [3]]
    assert grouped([4, 3], 100) == [[4, 3]]
    assert grouped([], 8) == []


@pytest.mark.parametrize("most", [1, 7, 100])
@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (4.0, 3.0, 2.0)])
def test_lambda_is_of_each_clients_own_mean_loss(shares: tuple[float, ...], most: int) -> None:
    given = batches(4, 3, 2)
    alone = [trainer(half()).gradients(*batch) for batch in given]
    found, weights = run_together(trainer(half()), given, shares, most)
    for one, part in zip(alone, found, strict=True):
        np.testing.assert_allclose(part.lam, one.lam, **CLOSE)
        assert part.lam.dtype == np.float32
        assert part.loss == pytest.approx(one.loss, rel=1e-6)
    for at, gradient in enumerate(weights):
        wanted = sum(share * one.weights[at] for share, one in zip(shares, alone, strict=True))
        torch.testing.assert_close(gradient, wanted, **CLOSE)


class Plus(nn.Module):
    """Adds what is 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def test_lambda_by_hand() -> None:
    """f(z) = z + 0, two classes: λ = (softmax - onehot) / n, n of the client's own mini-batch."""
    given: list[Batch] = [
        (np.zeros((1, 2), np.float32), np.array([0]), (1, 0, 0)),
        (np.zeros((2, 2), np.float32), np.array([0, 1]), (1, 1, 0)),
    ]
    found, _ = trainer(Plus()).together(given, (1.0, 1.0))
    np.testing.assert_allclose(found[0].lam, [[-0.5, 0.5]], atol=1e-7)
    np.testing.assert_allclose(found[1].lam, [[-0.25, 0.25], [0.25, -0.25]], atol=1e-7)


def test_one_of_them_that_cannot_be_used_is_an_error_of_all() -> None:
    infinite = (np.full((2, tiny.CUT), np.inf, np.float32), np.zeros(2, np.int64), (1, 2, 0))
    bad = [*batches(4, 3), infinite]
    with pytest.raises(WireError, match="not finite"):
        run_together(trainer(half()), bad, (1.0,) * 3, 100)


def close(a: Trial, b: Trial) -> bool:
    return a.model.keys() == b.model.keys() and all(
        torch.allclose(a.model[name], b.model[name], **CLOSE) for name in a.model
    )


@pytest.mark.parametrize("mean", ["uniform", "samples"])
@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
def test_a_run_together_is_the_run_of_one_after_another(
    method: str, mean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    plain = Trainer.together

    def together(half: Trainer, given: list[Batch], *shares: Any) -> Any:
        ran.append(len(given))
        return plain(half, given, *shares)

    monkeypatch.setattr(Trainer, "together", together)
    options: dict[str, Any] = {"minibatches": 2, "mean": mean, "server_lr": 0.2}

    def trained(most: int) -> tuple[Trial, list[int]]:
        ran.clear()
        trial = train(tiny.task(UNEVEN), method, server_batch=most, **options)
        return trial, list(ran)

    alone, each = trained(0)
    assert each == [1] * 24  # 3 rounds, 4 clients, 2 mini-batches each
    for most, wanted in ((1000, [8] * 3), (7, None)):
        found, grouped = trained(most)
        assert sum(grouped) == 24 and grouped == (wanted or grouped)
        assert max(grouped) > 1 and close(found, alone)
        for one, other in zip(found.strategy.records, alone.strategy.records, strict=True):
            assert one.samples == other.samples and one.replies == other.replies
            assert one.loss == (other.loss and pytest.approx(other.loss, rel=1e-5))


def label_wrong(content: Any) -> Any:
    y = values(content.array_records["arrays"]["y"]).copy()
    y[-1] = 9
    return changed(content, arrays={"y": y})


@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
def test_a_bad_reply_among_them_is_refused_alone(method: str) -> None:
    fault = Fault("change", {1}, {1}, "forward", change=label_wrong)
    options: dict[str, Any] = {"rounds": 1, "minibatches": 2}
    together, alone = (
        train(tiny.task(), method, [fault], server_batch=most, **options) for most in (1000, 0)
    )
    assert together.total("rejected") == alone.total("rejected") == 1
    assert "mini-batches of 4 clients run one after another instead of together" in together.notes
    assert equal(together.model, alone.model)


class Functional(nn.Module):
    """Dropout that is no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, self.training)


class Centred(nn.Module):
    """Takes the mean over the mini-batch off."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Summed(nn.Module):
    """Gives one row for the whole mini-batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=0)


def behind(last: nn.Module) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            act=nn.Tanh(),
            extra=last,
            out=nn.Linear(tiny.CUT, tiny.CLASSES),
        )
    )


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (lambda: nn.BatchNorm1d(tiny.CUT), r"'extra' of the server half \(BatchNorm1d in train"),
        (lambda: nn.Dropout(0.1), r"'extra' of the server half \(Dropout in train mode\)"),
        (Functional, "other outputs for a sample beside other samples, or each time"),
        (Centred, "other outputs for a sample beside other samples"),
        (Summed, "no tensor with a row for each sample"),
    ],
)
@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
def test_what_couples_samples_is_refused(method: str, layer: Any, says: str) -> None:
    whole = rf"server_batch is 64, but .*{says}.*leave server_batch 0"
    with pytest.raises(ConfigError, match=whole):
        begin(tiny.task(build=lambda: behind(layer())), method, server_batch=64)


@pytest.mark.parametrize("layer", [lambda: nn.LayerNorm(tiny.CUT), lambda: nn.Dropout(0.0)])
def test_what_does_not_is_none(layer: Any) -> None:
    begin(tiny.task(build=lambda: behind(layer())), server_batch=64)


def test_where_the_server_steps_after_each_mini_batch_it_is_refused() -> None:
    for method in ("ho_sfl", "frozen"):
        with pytest.raises(ConfigError, match=r"server_batch is 8 with server_steps=batch: the"):
            read_options({"method": method, "server_batch": 8, "server_steps": "batch"})
        with pytest.raises(ConfigError, match="server_batch is -1; it must be at least 0"):
            read_options({"method": method, "server_batch": -1, "server_steps": "round"})
    with pytest.raises(ConfigError, match="Unknown option of method 'splitfed_v2' 'server-batch'"):
        read_options({"method": "splitfed_v2", "server_batch": 8})
