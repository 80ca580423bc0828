"""Sizes that go around a cut: constants and batch sizes need not cross, others must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split import cut, every_cut, legal_cuts

SIDE = 4


def batch(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


class Net(nn.Module):
    """conv [N, 2, 4, 4] -> act -> flattened by sizes taken from the input -> out [N, 3]."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)
        self.out, self.kind = nn.Linear(2 * SIDE * SIDE, 3), kind

    def forward(self, x: Tensor) -> Any:
        n, _, height, width = x.shape
        if self.kind == "asserted":
            torch._assert(height == SIDE, "wrong height")
            torch._assert(SIDE == width, "wrong width")
        x = self.act(self.conv(x))
        if self.kind == "asserted":
            return self.out(x.reshape(n, 2 * height * (width // 1)))
        if self.kind == "height":
            return self.out(x.reshape(n, 2 * height * SIDE))
        return self.out(x.view(n, -1))


@pytest.mark.parametrize("kind", ["batch", "asserted"])
def test_the_server_half_takes_the_batch_size_from_the_smashed_data(kind: str) -> None:
    model = Net(kind)
    assert legal_cuts(model) == ["conv", "act"]
    for halves in every_cut(model):
        for count in (1, 5):
            x = batch(count, 2, SIDE, SIDE)
            with torch.no_grad():
                assert torch.equal(halves.server(halves.client(x)), model(x))


def test_the_client_half_holds_the_input_to_the_asserted_size() -> None:
    client = cut(Net("asserted"), "conv").client
    with pytest.raises(AssertionError, match="wrong height"):
        client(batch(1, 2, SIDE + 1, SIDE))
    with pytest.raises(AssertionError, match="wrong width"):
        client(batch(1, 2, SIDE, SIDE + 1))


def test_a_size_that_nothing_holds_has_to_cross() -> None:
    with pytest.raises(CutError, match="goes around it"):
        cut(Net("height"), "conv")
    assert legal_cuts(Net("height")) == []


class Twice(nn.Module):
    """A layer that makes two rows of one, and one that is passed the number of rows there were."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.split, self.out = nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Any:
        n = x.shape[0]
        z = self.split(self.first(x).view(n, 2, 2))
        return self.out(z).view(n, 2, 3)


def test_behind_a_layer_that_merges_the_batch_with_more_its_size_has_to_cross() -> None:
    assert legal_cuts(Twice()) == ["first"]
    with pytest.raises(CutError, match="cannot cut at 'split': the result of"):
        cut(Twice(), "split")


class Grown(nn.Module):
    """Adds an offset of three rows: a batch of one becomes one of three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.add = nn.Linear(4, 4), Offset()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.add(self.first(x)))[: x.shape[0]]


class Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.ones(3, 4))

    def forward(self, x: Tensor) -> Any:
        return x + self.rows


def test_a_client_half_refuses_a_batch_whose_size_did_not_stay() -> None:
    halves, x = cut(Grown(), "add"), batch(3, 4)
    assert halves.server(halves.client(x)).shape == (3, 3)
    with pytest.raises(AssertionError, match="must have the batch size of 'x' as their first size"):
        halves.client(batch(1, 4))


def test_every_cut_at_layers_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [halves.at for halves in every_cut(model, cuts=["1", "0"])] == ["1", "0"]
    with pytest.raises(CutError, match="nine"):
        list(every_cut(model, cuts=["0", "nine"]))


def test_every_cut_is_cut_at_each_legal_one() -> None:
    model = Net("batch")
    both = zip(every_cut(model), legal_cuts(model), strict=True)
    for halves, at in both:
        other = cut(model, at)
        assert halves.at == other.at == at
        assert [*halves.client.state_dict()] == [*other.client.state_dict()]
        assert [*halves.server.state_dict()] == [*other.server.state_dict()]
