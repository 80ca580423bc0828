from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from sfl_flower.errors import CutError
from sfl_flower.split import check_zeroth_order, cut, freeze_batch_norm, problems


def layers(half: nn.Module, example: Tensor | None = None) -> list[str]:
    found = problems(half, example=None if example is None else (example,))
    assert all(problem.what and problem.fix and str(problem) for problem in found)
    return [problem.layer for problem in found]


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


def test_a_plain_half_has_no_problem() -> None:
    half = cut(nn.Sequential(nn.Linear(2, 3), nn.ReLU(True), nn.Linear(3, 1)), "1").client
    assert problems(half, example=(ones(4, 2),)) == []
    check_zeroth_order(half, example=(ones(4, 2),))


def test_batch_norm_in_train_mode_and_its_remedy() -> None:
    half = cut(torchvision.models.resnet18(num_classes=3), "layer1").client
    assert layers(half) == [f"{n}" for n in ("bn1", "layer1.0.bn1", "layer1.0.bn2")] + [
        "layer1.1.bn1",
        "layer1.1.bn2",
    ]
    with pytest.raises(CutError, match=r"'bn1', .*and 2 more: BatchNorm2d.*freeze_batch_norm"):
        check_zeroth_order(half)
    assert problems(copy.deepcopy(half).eval()) == []
    assert freeze_batch_norm(half) is half
    half.train()
    assert problems(half, example=(ones(2, 3, 16, 16),)) == []
    assert half.get_submodule("layer1.0.conv1").training
    assert not half.get_parameter("bn1.weight").requires_grad
    assert not copy.deepcopy(half).train().get_submodule("bn1").training


def test_freezing_keeps_names_and_output() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    names, before = list(model.state_dict()), model.eval()(ones(2, 2, 4))
    freeze_batch_norm(freeze_batch_norm(model.train())).train()
    assert list(model.state_dict()) == names
    assert torch.equal(model(ones(2, 2, 4)), before)


class OwnNorm(nn.BatchNorm1d):
    pass


def test_what_cannot_be_frozen() -> None:
    bare = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
    assert layers(nn.Sequential(nn.Linear(2, 2), *bare).eval()) == ["1"]
    with pytest.raises(CutError, match="'0' keeps no running statistics"):
        freeze_batch_norm(bare)
    mixed = nn.Sequential(nn.BatchNorm1d(2), OwnNorm(2))
    with pytest.raises(CutError, match="'1' is a OwnNorm"):
        freeze_batch_norm(mixed)
    assert mixed[0].train().training, "nothing is changed when one layer is refused"


def test_layers_with_randomness_or_state() -> None:
    half = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2),
            "drop": nn.Dropout(0.5),
            "no_drop": nn.Dropout(0.0),
            "alpha": nn.AlphaDropout(0.1),
            "rrelu": nn.RReLU(),
            "attention": nn.MultiheadAttention(2, 1, dropout=0.1),
            "lstm": nn.LSTM(2, 2, num_layers=2, dropout=0.1),
            "instance": nn.InstanceNorm1d(2, track_running_stats=True),
            "bare_instance": nn.InstanceNorm1d(2),
            "old_spectral": spectral_norm(nn.Linear(2, 2)),
            "spectral": parametrizations.spectral_norm(nn.Linear(2, 2)),
        }
    )
    expected = ["drop", "alpha", "rrelu", "attention", "lstm", "instance", "old_spectral"]
    assert layers(half) == [*expected, "spectral.parametrizations.weight.0"]
    assert layers(half.eval()) == []
    half["pool"] = nn.FractionalMaxPool2d(2, output_ratio=0.5)
    assert layers(half) == ["pool"], "random in every mode"


class Functional(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.block, self.last = _Body(kind), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.block(x))


class _Body(nn.Module):
    count: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(4, 4), kind
        self.depth = torchvision.ops.StochasticDepth(0.5, "row")
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        x = self.fc(x)
        if self.kind == "mode":
            return F.dropout(x, 0.5, self.training)
        if self.kind == "always":
            return F.dropout(x, 0.5)
        if self.kind == "native":
            return torch.dropout(x, 0.5, True)
        if self.kind == "depth":
            return self.depth(x)
        if self.kind == "whole":
            return x * 2 if not self.training else F.dropout(x, 0.5)
        if self.kind == "noise":
            return x + torch.randn_like(x)
        if self.kind == "attention":
            return F.scaled_dot_product_attention(x[None], x[None], x[None])[0]
        if self.kind == "count":
            self.count.add_(1)
        return x + self.count


@pytest.mark.parametrize(
    ("kind", "train", "evaluate"),
    [
        ("mode", ["block"], []),
        ("depth", ["block.depth"], []),
        ("always", ["block"], ["block"]),
        ("native", ["block"], ["block"]),
        ("noise", ["block"], ["block"]),
        ("count", ["block.count"], ["block.count"]),
        ("attention", [], []),
        ("none", [], []),
    ],
)
def test_functional_operations(kind: str, train: list[str], evaluate: list[str]) -> None:
    half = cut(Functional(kind), "block").client
    assert layers(half.train()) == train
    assert layers(half.eval()) == evaluate


def test_inside_a_layer_kept_whole_only_running_shows_it() -> None:
    half = cut(Functional("whole"), "block").client
    assert layers(half) == []
    assert "block" in layers(half, ones(8, 4))
    assert layers(half.eval(), ones(8, 4)) == []


class Hidden(nn.Module):
    """What no attribute shows: state, randomness or a write, in a layer of the user's own."""

    seen: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind, self.calls = nn.Linear(2, 2), kind, 0
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        if self.kind == "random":
            return self.fc(x) + torch.randn(2)
        if self.kind == "counter":
            return self.fc(x) * self.calls
        if self.kind == "buffer":
            self.seen += x.sum()
        if self.kind == "input":
            x.add_(1)
        return self.fc(x)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("random", "1"), ("counter", "1"), ("buffer", "1.seen"), ("input", ""), ("none", None)],
)
def test_running_it_twice_shows_what_nothing_else_does(kind: str, expected: str | None) -> None:
    hidden = Hidden(kind)
    half = nn.Sequential(nn.Identity(), hidden)
    x, generator = ones(3, 2), torch.get_rng_state()
    assert layers(half) == []
    found = layers(half, x)
    assert (expected in found) if expected is not None else (found == [])
    assert torch.equal(x, ones(3, 2)) and torch.equal(generator, torch.get_rng_state())
    assert hidden.calls == 0 and not hidden.seen.any()


def test_nothing_to_train() -> None:
    half = nn.Sequential(nn.Linear(2, 2).requires_grad_(False))
    assert [p.what for p in problems(half)] == ["it has no trainable parameter"]
    with pytest.raises(CutError, match="no trainable parameter; cut at a later layer"):
        check_zeroth_order(half)
    check_zeroth_order(half, frozen_ok=True)
    check_zeroth_order(nn.Flatten(), frozen_ok=True)


def test_only_fp32_is_trained() -> None:
    half = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2).half().requires_grad_(False))
    assert layers(half) == ["0.weight", "0.bias"]
    with pytest.raises(CutError, match=r"float64, not float32; call \.float\(\)"):
        check_zeroth_order(half)


def test_every_problem_is_listed_once() -> None:
    half = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Dropout(0.1))
    with pytest.raises(CutError) as caught:
        check_zeroth_order(half)
    said = str(caught.value)
    assert "'1', '3': Dropout" in said and "'2': BatchNorm1d" in said
    assert said.count("draws anew") == 1


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(CutError, match="does not run on the example"):
        problems(nn.Sequential(nn.Linear(2, 2)), example=(ones(1, 3),))
