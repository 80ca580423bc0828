"""Probes that move a layer's parameters while it runs: the same bits as all at once."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from sfl_flower.data import seeded_construction
from sfl_flower.split import cut
from sfl_flower.split.called import called_layers
from sfl_flower.training.meter import PeakMemory
from sfl_flower.zo import Key, ParameterVector, Probing, run_key, surrogate_scalars
from sfl_flower.zo.layers import lay_out, most_moved
from tests.second_device import SECOND, second_device

RUN = run_key("test", 3)


class Nested(nn.Module):
    """Parameters of its own beside a layer's, a layer that runs twice, and one in another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, -1.5, 2.0, 1.0]))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.tanh(self.inner(x)) * self.scale)
        return out


def net() -> Any:
    with seeded_construction(0):
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), Nested(), nn.Linear(4, 5)
        )


def outputs(module: nn.Module, layers: list[nn.Module], x: Tensor) -> list[Tensor]:
    """Return outputs along two directions, both sides, of a copy whose layers move apart."""
    places = {id(m): name for name, m in module.named_modules()}
    twin = copy.deepcopy(module).eval()
    vector = ParameterVector(twin, layers=[twin.get_submodule(places[id(m)]) for m in layers])
    found = []
    for law in ("rademacher", "gaussian", "rank_one"):
        direction = vector.directions(RUN, law).of(Key(4))
        for scale in (0.1, -0.3):
            with torch.no_grad(), vector.probe(direction, scale):
                found.append(twin(x))
    return found


LAYERS: dict[str, Callable[[Any], list[nn.Module]]] = {
    "leaves": lambda net: [net[0], net[1], net[4]],
    "a layer with one inside": lambda net: [net[0], net[3], net[4]],
    "the inner one, which runs twice": lambda net: [net[3].inner],
    "one inside another: neither has it alone": lambda net: [net[3], net[3].inner, net[0]],
    "the whole": lambda net: [net],
    "one twice": lambda net: [net[0], net[0]],
    "without parameters": lambda net: [net[2]],
}


@pytest.mark.parametrize("which", LAYERS)
def test_layer_by_layer_is_all_at_once_to_the_bit(which: str) -> None:
    module, x = net(), torch.linspace(-1, 1, 18).reshape(6, 3)
    expected = outputs(module, [], x)
    found = outputs(module, LAYERS[which](module), x)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(expected[0], expected[1])


def test_nothing_is_left_behind() -> None:
    module, x = net().eval(), torch.ones(2, 3)
    vector = ParameterVector(module, layers=[module[0], module[4]])
    anchor, still = vector.anchor.clone(), module(x)
    with vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), 0.5):
        assert torch.equal(module[0].weight, anchor_of(vector, "0.weight"))  # it was not called yet
        assert not torch.equal(module(x), still)
        assert torch.equal(module[0].weight, anchor_of(vector, "0.weight"))  # another one was
    assert torch.equal(vector.anchor, anchor) and torch.equal(module(x), still)
    assert not module[0]._forward_hooks and not module[0]._forward_pre_hooks
    assert module[0].weight.data_ptr() == anchor_of(vector, "0.weight").data_ptr()


def anchor_of(vector: ParameterVector, name: str) -> Tensor:
    return vector.named(vector.anchor)[name]


def test_a_forward_that_fails_puts_everything_back() -> None:
    module = net().eval()
    vector = ParameterVector(module, layers=[module[0], module[4]])
    direction = vector.directions(RUN, "rademacher").of(Key(0))
    with pytest.raises(RuntimeError, match="shapes"), vector.probe(direction, 0.5):
        module(torch.ones(2, 7))
    assert module[0].weight.data_ptr() == anchor_of(vector, "0.weight").data_ptr()
    assert not module[0]._forward_hooks
    with vector.probe(direction, 0.5):  # and the next probe runs
        module(torch.ones(2, 3))


def test_at_once_moves_what_layers_hold_too() -> None:
    module = net()
    vector = ParameterVector(module, layers=[module[0], module[4]])
    direction = vector.directions(RUN, "rademacher").of(Key(0))
    with vector.probe(direction, 0.5, at_once=True):
        seen = torch.cat([dict(module.named_parameters())[n].reshape(-1) for n in vector.names])
        assert torch.equal(seen, vector.anchor + 0.5 * direction.values())
        with torch.no_grad():
            module[0].weight.zero_()
    assert anchor_of(vector, "0.weight").any()


class Reads(nn.Module):
    """Reads the weight of a layer that it calls as well, and ties two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.third.weight = self.second.weight
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.third(self.second(self.first(x))))
        out: Tensor = self.last(functional.linear(x, self.first.weight))
        return out


def test_of_a_recorded_half_what_is_read_outside_of_calls_is_left_out() -> None:
    with seeded_construction(0):
        half = cut(nn.Sequential(Reads(), nn.Linear(2, 2)), "0").client
    names = {id(module): name for name, module in half.named_modules()}
    assert [names[id(layer)] for layer in called_layers(half)] == ["0.second", "0.third", "0.last"]
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    assert all(map(torch.equal, outputs(half, called_layers(half), x), outputs(half, [], x)))


@fx.wrap
def tied(layer: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x, layer.weight)


class GivesALayer(nn.Module):
    """A function, which is not recorded, reads the weight of a layer that is called too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return tied(self.first, self.second(torch.relu(self.first(x))))


class Keeps(nn.Module):
    """Reads a layer that it does not register, and branches on data: it is kept whole."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.own, self.aside = nn.Linear(4, 4), [layer]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.own(x)
        return functional.linear(out, self.aside[0].weight) if out.sum() > -1e9 else out


class ReadsAside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = Keeps(self.first)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def scripted() -> nn.Module:
    inner: Any = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    return nn.Sequential(nn.Linear(4, 4), inner)


HARD: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a function reads a layer": (GivesALayer, 1),
    "a module reads a layer aside": (ReadsAside, 0),
    "scripted": (scripted, 0),
    "torch's encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0), 0),
}


@pytest.mark.parametrize("which", HARD)
def test_what_may_be_read_elsewhere_moves_at_once(which: str) -> None:
    build, count = HARD[which]
    with seeded_construction(0):
        half = cut(nn.Sequential(build(), nn.Linear(4, 2)).eval(), "0").client
    layers = called_layers(half)
    assert len(layers) == count
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    found, expected = (surrogate(half, kept, x) for kept in (layers, []))
    assert torch.equal(found, expected) and found.abs().min() > 0


@pytest.mark.parametrize(("large", "moves"), [(36, 1), (1, 2), (10_000, 0)])
def test_on_a_device_large_layers_move_one_by_one_to_the_same_bits(
    large: int, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfl_flower.zo.vector._LARGE_LAYER", large)
    module, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)), torch.ones(3, 5)
    u = ParameterVector(module).directions(RUN, "rademacher").of(Key(3))
    with ParameterVector(module).probe(u, 1e-2), torch.no_grad():
        here = module(x)
    with second_device():
        module.to(SECOND)
        vector = ParameterVector(module, layers=[module[0], module[2]])
        assert len(vector._parts) == moves
        with vector.probe(u, 1e-2), torch.no_grad():
            there = module(x.to(SECOND))
        there = there.cpu()
    assert torch.equal(here, there)


def surrogate(half: nn.Module, layers: list[nn.Module], x: Tensor) -> Tensor:
    vector = ParameterVector(half, layers=layers)
    us = vector.directions(RUN, "gaussian").of_step(1, 0, 0, 3)
    with torch.no_grad():
        still = half(x)
        return surrogate_scalars(
            lambda: half(x), vector, us, Probing(3), still, torch.ones_like(still)
        )


def test_a_scripted_layer_that_is_named_moves_at_once() -> None:
    module: Any = scripted()
    x = torch.ones(2, 4)
    assert torch.equal(surrogate(module, list(module), x), surrogate(module, [], x))


def test_a_layer_that_runs_again_is_written_twice_at_most() -> None:
    module = net().eval()
    vector = ParameterVector(module, layers=[module[0], module[4]])
    direction: Any = vector.directions(RUN, "rademacher").of(Key(0))
    written: list[int] = []
    own = direction.times(0.5)
    direction.times = lambda scale: Counting(own, written)
    with torch.no_grad(), vector.probe(direction, 0.5):
        outs = [module(torch.ones(2, 3)) for _ in range(5)]
    assert all(torch.equal(out, outs[0]) for out in outs)
    others = 1 + 2 + 1 + 2  # the norm's, and of the nested module scale and layer, in stretches
    assert len(written) <= others + 2 * 2


class Counting:
    def __init__(self, own: Any, written: list[int]) -> None:
        self._own, self._written = own, written

    def add_stretches(self, out: Tensor, base: Tensor, stretches: tuple[tuple[int, int]]) -> None:
        self._written.extend(start for start, _ in stretches)
        self._own.add_stretches(out, base, stretches)


def test_a_copy_that_is_made_inside_a_probe_moves_nothing() -> None:
    module = net().eval()
    vector = ParameterVector(module, layers=[module[0]])
    with vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), 0.5):
        twin = copy.deepcopy(module)
    twin(torch.ones(2, 3))
    assert module[0].weight.data_ptr() == anchor_of(vector, "0.weight").data_ptr()


def test_of_other_modules_nothing_is_known() -> None:
    assert called_layers(net()) == []


def test_a_probe_takes_the_memory_of_the_largest_layer() -> None:
    """Ten layers of 256 kB: a probe at once takes ten of them, layer by layer one."""
    module = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(10)))
    x, peaks = torch.ones(1, 256), list[int]()
    for layers in (list(module), []):
        vector = ParameterVector(module, layers=layers)
        us = vector.directions(RUN, "rademacher").of_step(1, 0, 0, 2)
        still = module(x).detach()
        with torch.no_grad(), PeakMemory() as memory:
            surrogate_scalars(lambda: module(x), vector, us, Probing(2), still, torch.ones(1, 256))
        peaks.append(memory.peak)
    assert 256 * 1024 <= peaks[0] < 300 * 1024 < 10 * 256 * 1024 <= peaks[1]


@pytest.mark.parametrize("by_layer", [False, True])
def test_after_the_first_step_only_the_part_that_is_moved_is_allocated(by_layer: bool) -> None:
    """Of torch's memory nothing at all at once; of numpy's the words alone, a bit an element."""
    module = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4)))
    vector = ParameterVector(module, layers=list(module) if by_layer else [])
    directions, probes = vector.directions(RUN, "rademacher"), 3
    x = torch.ones(1, 256)
    still = module(x).detach()

    def step(number: int) -> None:
        us = directions.of_step(number, 0, 0, probes)
        surrogate_scalars(lambda: module(x), vector, us, Probing(probes), still, still)

    allocated = []
    for number in range(3):
        tracemalloc.start()
        with torch.no_grad(), PeakMemory() as memory:
            step(number)
        allocated.append((memory.peak, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    layer, words, little = 4 * 256 * 256, probes * vector.size // 8, 40_000
    for torch_peak, numpy_peak in allocated[1:]:
        assert torch_peak < layer * by_layer + little
        assert numpy_peak < words + little
    assert allocated[0][0] > 4 * layer or by_layer  # the room that all move into
    assert allocated[0][1] > words + vector.size // 2  # indices of the bytes of a block


def test_the_smallest_layers_move_at_once_and_the_next_ones_together() -> None:
    sizes = [2, 64, 32, 32, 3, 16, 64, 64]
    layers = [nn.Linear(n, 1, bias=False) for n in sizes]
    module = nn.Sequential(*layers)
    parts, before = lay_out(list(module.parameters()), layers)
    assert before.size == 2 + 3  # 64 / 8 at most
    assert [part.modules for part in parts] == [
        layers[1:2], layers[2:4], layers[5:6], layers[6:7], layers[7:8],
    ]  # fmt: skip
    assert most_moved(list(module.parameters()), layers) == 5 + 64


SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, intermediate_size=24)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24, pad_token_id=0)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=4, pad_token_id=0)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_a_language_model_move_one_by_one(family: str) -> None:
    """Of a BERT embeddings too; nothing of a half is left to move at once."""
    with seeded_construction(0):
        half = cut(FAMILIES[family]().eval(), "block:2").client
    ids = torch.tensor([[3, 4, 5, 6, 0], [8, 9, 7, 0, 0]])
    layers = called_layers(half)
    assert all(map(torch.equal, outputs(half, layers, ids), outputs(half, [], ids)))
    own = {id(p) for layer in layers for p in layer.parameters()}
    left = [name for name, p in half.named_parameters() if id(p) not in own]
    assert left == []
