"""Backprop that runs segments again gives the same bits, and holds less."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.split import Whole, cut
from sfl_flower.split.checkpointing import checkpoint_segments
from sfl_flower.training.meter import PeakMemory
from tests import tiny
from tests.tiny import begin, equal, train

FIRST_ORDER = [name for name, method in METHODS.items() if method.facts.client == "first order"]


def gradients(half: nn.Module, x: Tensor) -> tuple[int, dict[str, Tensor]]:
    """Return the peak of forward and backward, and the gradients."""
    half.zero_grad(set_to_none=True)
    with torch.random.fork_rng(), PeakMemory() as memory:
        torch.default_generator.manual_seed(5)
        z = half(x)
        z.backward(torch.ones_like(z))
        del z
    return memory.peak, {n: p.grad for n, p in half.named_parameters() if p.grad is not None}


def plain(depth: int) -> nn.Module:
    """Return convolutions, each followed by dropout and an activation that writes into it."""
    layers = [
        layer
        for _ in range(depth)
        for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(0.3), nn.SiLU(inplace=True))
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 16 * 16, 2))


class Residual(nn.Module):
    """A block of one's own, with a parameter that is read outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) * self.scale) + x


def residual() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 1),
            body=nn.Sequential(*(Residual() for _ in range(5))),
            out=nn.Sequential(nn.Flatten(), nn.Linear(8 * 16 * 16, 2)),
        )
    )


@pytest.mark.parametrize(
    ("model", "at", "segments"),
    [
        (lambda: plain(6), "17", 3),
        (residual, "body", 5),
        (lambda: torchvision.models.resnet18().eval(), "layer2", 5),
        (lambda: torchvision.models.mobilenet_v3_small().eval(), "features.4", 4),
    ],
    ids=["plain", "residual", "resnet18", "mobilenet"],
)
def test_gradients_are_the_same_bits_and_take_less(model, at: str, segments: int) -> None:  # type: ignore[no-untyped-def]
    half = cut(model(), at).client
    again = copy.deepcopy(half)
    assert checkpoint_segments(again) == segments
    x = torch.linspace(-1, 1, 4 * 3 * 16 * 16).reshape(4, 3, 16, 16)
    (peak, found), (lower, same) = gradients(half, x), gradients(again, x)
    assert equal(found, same) and found
    assert lower < peak
    with torch.no_grad(), torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        first = half(x)
        torch.default_generator.manual_seed(5)
        assert torch.equal(first, again(x))
    assert checkpoint_segments(copy.deepcopy(again)) == segments  # a copy begins anew


def test_blocks_of_a_language_model_run_again() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=4, n_head=2, n_embd=16, vocab_size=50, n_positions=16, num_labels=2, pad_token_id=0
    )
    half = cut(transformers.GPT2ForSequenceClassification(config).train(), "block:3").client
    again = copy.deepcopy(half)
    assert checkpoint_segments(again) == 2
    x = torch.arange(1, 33).reshape(4, 8)
    (peak, found), (lower, same) = gradients(half, x), gradients(again, x)
    assert equal(found, same) and found
    assert lower < peak


def test_a_whole_model_has_the_segments_of_its_halves() -> None:
    halves = cut(residual(), "body.2")
    whole = Whole(halves.client, halves.server)
    alone = [checkpoint_segments(copy.deepcopy(half)) for half in (halves.client, halves.server)]
    assert checkpoint_segments(whole) == sum(alone)


def deeper() -> nn.Module:
    """Return six layers up to the cut (`act`), dropout among them."""
    sizes = [tiny.FEATURES, 8, 8]
    layers: list[tuple[str, nn.Module]] = []
    for index in range(2):
        layers += [
            (f"linear{index}", nn.Linear(sizes[index], sizes[index + 1])),
            (f"tanh{index}", nn.Tanh()),
            (f"drop{index}", nn.Dropout(0.2)),
        ]
    last = [("first", nn.Linear(8, tiny.CUT)), ("act", nn.Tanh())]
    return nn.Sequential(OrderedDict([*layers, *last, ("out", nn.Linear(tiny.CUT, 3))]))


@pytest.mark.flower
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_a_run_with_checkpointing_has_the_bits_of_one_without(method: str) -> None:
    options: dict[str, Any] = {"rounds": 2, "local_steps": 2, "micro_batch": 3}
    runs = [
        train(tiny.task(build=deeper), method, **options, checkpointing=lean)
        for lean in (False, True)
    ]
    assert [r.failures + r.rejected for r in runs[1].strategy.records] == [0] * 3
    assert equal(runs[0].model, runs[1].model)


@pytest.mark.flower
def test_checkpointing_is_refused_where_it_cannot_be() -> None:
    none = r"checkpointing is true, but clients of this method run no backprop; it must be false\."
    for method in ("ho_sfl", "heron", "decomfl", "frozen"):
        with pytest.raises(ConfigError, match=none):
            begin(tiny.task(build=deeper), method, checkpointing=True)
    twice = "checkpointing is true, but 'norm' of the client half cannot run twice: BatchNorm1d"
    with pytest.raises(ConfigError, match=twice):
        begin(tiny.task(build=tiny.with_batch_norm), "splitfed_v2", checkpointing=True)
    with pytest.raises(ConfigError, match="hold has no place to divide it: two blocks, or"):
        begin(tiny.task(), "splitfed_v2", checkpointing=True)
