"""A half in two parts, before and behind its first trained parameter: the same bits."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from benchmarks.architectures import TORCHVISION, Architecture
from benchmarks.language_models import BLOCKS, MODELS, build, tokens
from sfl_flower.data import put_back, seeded_torch, torch_states
from sfl_flower.split import cut, parted, restrict
from sfl_flower.zo import Key, ParameterVector, run_key


def calls(module: nn.Module) -> Counter[str]:
    """Count the calls of each layer from now on."""
    found = Counter[str]()
    for name, layer in module.named_modules():
        if name and not any(layer.children()):
            layer.register_forward_hook(lambda *_, name=name: found.update([name]))
    return found


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def assert_same_forwards(module: nn.Module, x: Tensor, trained: list[nn.Parameter]) -> bool:
    """Compare three forwards, the second at other parameters; tell whether there are two parts."""
    for parameter in module.parameters():
        parameter.requires_grad_(any(parameter is one for one in trained))
    whole = copy.deepcopy(module)
    parts = parted(module, trained)
    if parts is None:
        return False
    given = x.clone()
    with seeded_torch("draws", 1):
        values, drawn = parts.first(x), torch_states()
    vectors = ParameterVector(module), ParameterVector(whole)
    direction = vectors[0].directions(run_key("parts"), "rademacher").of(Key(0))
    with torch.no_grad():
        for scale in (0.0, 0.1, 0.0):
            with vectors[0].probe(direction, scale), vectors[1].probe(direction, scale):
                # Statistics of the whole move in its three forwards, of the first part once.
                before = buffers(whole)
                with seeded_torch("draws", 1):
                    expected = whole(x)
                    put_back(drawn)
                    assert torch.equal(parts.rest(values), expected), scale
            if scale == 0.1:
                for name, value in whole.named_buffers():
                    value.copy_(before[name])
    assert torch.equal(x, given)
    return True


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("architecture", TORCHVISION, ids=lambda one: one.name)
def test_both_parts_are_the_half(architecture: Architecture, training: bool) -> None:
    with seeded_torch("model", 0):
        model = architecture.build()
    half = cut(model, architecture.named[-1]).client.train(training)
    x = architecture.inputs()
    own = list(half.parameters())
    tried = [own[at:] for at in range(0, len(own), max(1, len(own) // 3))]
    found = [assert_same_forwards(copy_, x, chosen) for copy_, chosen in _copies(half, tried)]
    assert not found[0] and any(found)


def _copies(
    half: nn.Module, tried: list[list[nn.Parameter]]
) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    for chosen in tried:
        memo: dict[int, Any] = {}
        yield copy.deepcopy(half, memo), [memo[id(one)] for one in chosen]


@pytest.mark.parametrize("name", MODELS)
def test_both_parts_are_the_half_of_a_language_model(name: str) -> None:
    half = cut(build(name), at=f"block:{BLOCKS - 1}").client
    last = list(parted_blocks(half)[-1].parameters())
    assert assert_same_forwards(half, tokens(), last)
    counts, parts = calls(half), parted(half, last)
    assert parts is not None
    values = parts.first(tokens())
    once = Counter(counts)
    for _ in range(5):
        parts.rest(values)
    inside = {f".{BLOCKS - 2}." in f".{layer}." for layer in counts}
    assert inside == {True, False}
    for layer, count in counts.items():
        if f".{BLOCKS - 2}." in f".{layer}.":
            assert layer not in once and count == 5, layer
        elif any(f".{block}." in f".{layer}." for block in range(BLOCKS - 2)):
            assert once[layer] == count == 1, layer


def parted_blocks(half: nn.Module) -> list[nn.Module]:
    """Return the blocks of a client half of a language model."""
    lists = [module for module in half.modules() if isinstance(module, nn.ModuleList)]
    return [block for block in lists[0] if any(True for _ in block.parameters())]


@pytest.mark.parametrize("name", ["bert-classes", "gpt2-lm", "llama-lm"])
def test_adapters_in_the_last_block_are_all_that_runs_again(name: str) -> None:
    targets = {"bert-classes": ["query"], "gpt2-lm": ["c_attn"], "llama-lm": ["q_proj"]}[name]
    kind = "SEQ_CLS" if name.endswith("classes") else "CAUSAL_LM"
    config = peft.LoraConfig(
        task_type=kind, r=2, target_modules=targets, layers_to_transform=[1, 2],
        fan_in_fan_out=name.startswith("gpt2"),
    )  # fmt: skip
    with seeded_torch("adapters", 0):
        model = peft.get_peft_model(build(name), config).eval()
    half = cut(model, at="block:2").client
    restrict(half, "lora")
    adapters = [one for one in half.parameters() if one.requires_grad]
    assert adapters and assert_same_forwards(half, tokens(), adapters)
    assert parted(half, half.parameters()) is None
