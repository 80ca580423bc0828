from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.split import (
    base_digest,
    base_state,
    cut,
    freeze_batch_norm,
    load_travelling,
    restrict,
    travelling_state,
)
from sfl_flower.tasks import load_task
from sfl_flower.tasks.vision import resnet18
from tests import tiny


class RMSNorm(nn.Module):
    """As language models bring one along: a weight, and a name that says what it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return found


class Adapted(nn.Module):
    """A frozen layer with adapters, under the names that peft gives them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, width).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, width, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return found


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.query = Adapted(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.mlp(self.query(self.norm(x)))
        return found


class Model(nn.Module):
    """An embedding, blocks in a list, a norm and a head: the form of language models."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Block(4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(self.norm(x))
        return found


def trained(model: nn.Module, choice: str, at: str) -> list[str]:
    return chosen(cut(model, at).client, choice)


def chosen(half: nn.Module, choice: str) -> list[str]:
    half = copy.deepcopy(half)
    restrict(half, choice)
    return sorted(name for name, p in half.named_parameters() if p.requires_grad)


LORA = [f"blocks.{b}.query.lora_{x}.default.weight" for b in (0, 1) for x in "AB"]
BLOCK_1 = [
    "blocks.1.mlp.0.bias",
    "blocks.1.mlp.0.weight",
    "blocks.1.norm.weight",
    *LORA[2:],
]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("lora", LORA),
        ("norm", ["blocks.0.norm.weight", "blocks.1.norm.weight"]),
        ("bias", ["blocks.0.mlp.0.bias", "blocks.1.mlp.0.bias", "inputs.bias"]),
        ("last:1", BLOCK_1),
        ("blocks.1.mlp.*", BLOCK_1[:2]),
        ("*.lora_B.*", [LORA[1], LORA[3]]),
        ("blocks.[01].norm.weight", ["blocks.0.norm.weight", "blocks.1.norm.weight"]),
    ],
)
def test_choices_of_a_model_of_blocks(choice: str, names: list[str]) -> None:
    assert trained(Model(), choice, "blocks.1") == names


def test_all_and_every_block_leave_what_the_model_has() -> None:
    half = cut(Model(), "blocks.1").client
    before = [name for name, p in half.named_parameters() if p.requires_grad]
    assert "blocks.0.query.base_layer.weight" not in before
    for choice in ("all", "last:3", "*"):  # inputs and two blocks
        assert trained(Model(), choice, "blocks.1") == sorted(before)


def test_choices_of_resnet18_by_hand() -> None:
    """To layer2: 4 and 4 blocks' convolutions, 10 norms of 64 or 128 channels, no bias beside."""
    half = cut(resnet18(), "layer2").client
    norms = [half.get_parameter(name).numel() for name in chosen(half, "norm")]
    assert sum(norms) == 2 * (5 * 64 + 5 * 128)
    assert len(chosen(half, "bias")) == 10
    assert {name.rpartition(".")[0] for name in chosen(half, "last:1")} == {
        "layer2.1.conv1",
        "layer2.1.bn1",
        "layer2.1.conv2",
        "layer2.1.bn2",
    }
    assert chosen(half, "last:6") == chosen(half, "all")  # conv1, bn1, two blocks in each layer


def test_blocks_of_a_plain_list_are_its_items_also_in_a_half() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Block(4), Block(4), nn.Linear(4, 2))
    names = trained(model, "last:1", "2")
    assert {name.split(".")[0] for name in names} == {"2"}
    assert {name.split(".")[1] for name in names} == {"norm", "query", "mlp"}


def test_what_the_model_froze_stays_frozen_and_does_not_count_as_a_block() -> None:
    model = nn.Sequential(
        OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), norm=nn.BatchNorm1d(2), c=nn.Linear(2, 2))
    )
    freeze_batch_norm(model)
    assert trained(model, "last:1", "norm") == ["b.bias", "b.weight"]
    model.get_parameter("b.bias").requires_grad_(False)
    assert trained(model, "bias", "norm") == ["a.bias"]


def test_a_tied_parameter_is_chosen_under_any_of_its_names() -> None:
    half = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    half.get_submodule("b").weight = half.get_parameter("a.weight")
    restrict(half, "b.weight")
    assert [n for n, p in half.named_parameters() if p.requires_grad] == ["a.weight"]


NOTHING = (
    r"trained is 'layer9\.\*', which chooses nothing of the client half: the model trains 12 "
    r"tensors there \(inputs\.weight, .*, …\), 4 of lora, 2 of norm, 3 of bias; use all, lora, "
    r"norm, bias, last:N, subspace:R, core:R, or a pattern .* such as '.*\.\*'"
)


@pytest.mark.parametrize(
    ("build", "at", "choice", "says"),
    [
        (Model, "blocks.1", "layer9.*", NOTHING),
        (Model, "blocks.1", "*.base_layer.*", r"\(4 match, but the model froze them\)"),
        (tiny.model, "act", "lora", r"trained is 'lora'.* 0 of lora, 0 of norm, 1 of bias"),
        (Model, "blocks.1", "last:4", r"has 3 blocks .* \(inputs, blocks\.0, blocks\.1\)"),
        (tiny.model, "act", "last:0", r"last:N needs a whole number of blocks from 1"),
        (tiny.model, "act", "last:two", r"last:N needs a whole number of blocks from 1"),
        (tiny.model, "act", "", r"trained is ''; it must be .* last:N, subspace:R, core:R, or"),
    ],
)  # fmt: skip
def test_a_choice_of_nothing_is_refused(
    build: Callable[[], nn.Module], at: str, choice: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        trained(build(), choice, at)


# In a task


def test_a_task_trains_what_it_names_and_shares_nothing_with_one_that_trains_more() -> None:
    task = tiny.task()
    few = replace(task, trained="bias")
    assert few.token == task.token
    for problem, names in ((task, ["first.weight", "first.bias"]), (few, ["first.bias"])):
        half = problem.build(0).client
        assert [n for n, p in half.named_parameters() if p.requires_grad] == names
    assert all(p.requires_grad for p in few.build(0).server.parameters())
    ours, theirs = few.build(0).client.state_dict(), task.build(0).client.state_dict()
    assert tiny.equal(ours, theirs)
    with pytest.raises(ConfigError, match=r"last:N needs"):
        replace(task, trained="last:")


@pytest.mark.parametrize(
    ("name", "choice", "count"),
    [
        ("digits", "bias", 8),
        ("fashion_mnist", "last:1", 16 * 32 * 9 + 32),
        ("cifar10", "norm", 1920),
        ("synthetic", "layer2.1.*", 2 * 128 * 128 * 9),
    ],
)
def test_ready_made_tasks_take_it(name: str, choice: str, count: int) -> None:
    half = load_task(name, trained=choice).build(0).client
    assert sum(p.numel() for p in half.parameters() if p.requires_grad) == count


# What travels


def example() -> nn.Module:
    """A frozen layer, frozen norm, a norm that is trained, half of a layer; tied weights."""
    model = nn.ModuleDict(
        {
            "fixed": nn.Linear(2, 2).requires_grad_(False),
            "constant": freeze_batch_norm(nn.BatchNorm1d(2)),
            "norm": nn.BatchNorm1d(2),
            "one": nn.Linear(2, 2),
            "two": nn.Linear(2, 2, bias=False),
        }
    )
    model["two"].weight = model["one"].weight
    model["one"].bias.requires_grad_(False)
    return model


def test_trained_parameters_and_buffers_travel_and_all_else_is_the_base() -> None:
    model = example()
    moving = ["norm.bias", "norm.num_batches_tracked", "norm.running_mean", "norm.running_var",
              "norm.weight", "one.weight"]  # fmt: skip
    assert sorted(travelling_state(model)) == moving
    still = set(model.state_dict()) - set(moving) - {"two.weight"}
    assert set(base_state(model)) == still and "constant.running_var" in still
    free = nn.Linear(2, 2)
    assert (travelling_state(free).keys(), base_state(free)) == (free.state_dict().keys(), {})
    assert base_digest(free) == ""


def test_loading_writes_what_travels_and_nothing_else() -> None:
    model = example()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_travelling(model, {k: v + 1 for k, v in before.items()})
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {*travelling_state(model), "two.weight"}
    with pytest.raises(TrainingError, match=r"'one\.weight' is missing, here it has .* \[2, 2\]"):
        load_travelling(model, {k: v for k, v in before.items() if k != "one.weight"})
    with pytest.raises(TrainingError, match=r"'one\.weight' has shape \[4\]"):
        load_travelling(model, {**before, "one.weight": torch.zeros(4)})


def test_the_digest_is_of_the_base_alone_and_of_every_bit_of_it() -> None:
    model = example()
    digest = base_digest(model)
    load_travelling(model, {k: v + 1 for k, v in model.state_dict().items()})
    assert base_digest(model) == digest
    for name, value in base_state(model).items():
        kept = value.clone()
        value.copy_(value + 1)
        assert base_digest(model) != digest, name
        value.copy_(kept)
    assert base_digest(model) == digest
    assert base_digest(model.half()) != digest
    assert base_digest(model, example()) != base_digest(model)
