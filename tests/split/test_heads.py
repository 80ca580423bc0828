from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.data import seeded_torch
from sfl_flower.data.memory import forget
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.split import HEADS, Halves, base_state, cut, freeze_batch_norm, make_head
from sfl_flower.task import Samples, SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.tasks.vision import resnet18


class Block(nn.Module):
    """Adds what two layers make of it; writes in place, as residual networks do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.inner(x))
        out += x
        result: Tensor = self.relu(out)
        return result


def blocks() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(3, 4),
            act=nn.ReLU(inplace=True),
            a=Block(4),
            b=nn.Sequential(Block(4), Block(4)),
            last=nn.Linear(4, 5),
        )
    )


def halves(at: str = "first") -> Halves:
    with seeded_torch("model"):
        return cut(blocks(), at)


def made(
    kind: str, server: nn.Module | None = None, shape: tuple[int, ...] = (4,), n: int = 5, **kw: Any
) -> nn.Module:
    with seeded_torch("head"):
        return make_head(kind, server or halves().server, shape, n, **kw)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def equal_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_linear_is_one_layer_on_the_flattened_data() -> None:
    head = made("linear", shape=(2, 3, 3))
    assert count(head) == 18 * 5 + 5
    assert isinstance(head, nn.Sequential)
    layer: Any = head.fc
    z = torch.arange(36.0).reshape(2, 2, 3, 3)
    assert torch.equal(head(z), layer(z.reshape(2, 18)))
    assert head.training


def test_pooled_averages_over_the_grid() -> None:
    head = made("pooled:1", shape=(2, 4, 4), n=1)
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), ([[1.0, 10.0]], [0.5]), strict=True):
            parameter.copy_(torch.tensor(value))
    z = torch.stack([torch.full((4, 4), 3.0), torch.arange(16.0).reshape(4, 4)])
    assert head(z.unsqueeze(0)).tolist() == [[3.0 + 10 * 7.5 + 0.5]]
    assert count(made("pooled", shape=(2, 8, 8))) == 2 * 4 * 4 * 5 + 5
    assert count(made("pooled:3", shape=(2, 8, 8))) == 2 * 3 * 3 * 5 + 5


@pytest.mark.parametrize(
    ("last", "runs"), [("a", ("act", "a")), ("b.0", ("act", "a", "b.0")), ("act", ("act",))]
)
def test_blocks_are_the_first_layers_and_an_output_layer(last: str, runs: tuple[str, ...]) -> None:
    server = halves().server.train()
    head = made(f"blocks:{last}", server, init="copy").eval()
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    kept, expected = z.clone(), z.clone()
    whole = blocks().eval()
    whole.load_state_dict(server.state_dict(), strict=False)
    for name in runs:
        expected = whole.get_submodule(name)(expected)
    output: Any = head.get_submodule("fc")
    assert torch.equal(head(z), output(expected))
    assert torch.equal(z, kept), "the head wrote into z"
    names = [name.removeprefix("blocks.") for name in head.state_dict()]
    assert names[:-2] == [n for n in server.state_dict() if n.startswith(tuple(runs))]
    assert names[-2:] == ["fc.weight", "fc.bias"]


def test_copied_blocks_are_those_of_the_server_and_share_nothing_with_it() -> None:
    server = halves().server
    before = copy.deepcopy(server)
    head = made("blocks:b", server, init="copy")
    for name, value in server.state_dict().items():
        if name.startswith(("a.", "b.")):
            assert torch.equal(head.state_dict()[f"blocks.{name}"], value), name
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1.0)
    assert equal_state(server, before)


def test_random_blocks_are_new_and_follow_the_generator() -> None:
    server = halves().server
    with torch.no_grad():
        server.get_buffer("a.norm.running_mean").fill_(3.0)
    head = made("blocks:a", server)
    state, theirs = head.state_dict(), server.state_dict()
    assert not torch.equal(state["blocks.a.inner.weight"], theirs["a.inner.weight"])
    assert torch.equal(state["blocks.a.norm.running_mean"], torch.zeros(4))
    assert equal_state(head, made("blocks:a", server))


def test_the_whole_server_half() -> None:
    server = halves().server.eval()
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    copied = made("server", server, init="copy").eval()
    assert torch.equal(copied(z), server(z))
    assert not torch.equal(made("server", server).eval()(z), server(z))


def test_a_cut_inside_a_stage_leaves_the_rest_of_the_stage() -> None:
    server = halves("b.0").server
    assert [name for name in made("blocks:b", server).state_dict() if "inner" in name] == [
        "blocks.b.1.inner.weight", "blocks.b.1.inner.bias",
    ]  # fmt: skip


def test_a_server_half_that_is_a_plain_module() -> None:
    head = made("blocks:0", nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))
    assert count(head) == 4 * 6 + 6 + 6 * 5 + 5


def test_resnet18_as_published_for_fsl_sage() -> None:
    server = cut(resnet18(10), "layer2").server
    head = made("blocks:layer3", server, (128, 4, 4), 10)
    assert count(head) == 2_102_282
    state = head.state_dict().values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in state) == 8_419_408
    assert head(torch.zeros(2, 128, 4, 4)).shape == (2, 10)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("liner", {}, r"head is 'liner'; it must be one of linear, pooled, blocks:<layer>, task"),
    ("linear:3", {}, "head is 'linear:3'; it must be one of"),
    ("pooled:", {"shape": (2, 4, 4)}, "head is 'pooled:'; it must be one of"),
    ("blocks", {}, "needs the name of a layer, as in head 'blocks:layer3'"),
    ("blocks:first", {}, r"no first blocks that end at 'first'; .* are act, a\.relu, a, b\.0"),
    ("blocks:a.inner", {}, "no first blocks that end at 'a.inner'"),
    ("blocks:last", {}, "no first blocks that end at 'last'"),
    ("blocks:a", {"shape": (7,)}, r"'blocks:a' cannot be applied to smashed data \[N, 7\]"),
    ("pooled", {}, r"needs smashed data \[N, C, H, W\], but here they are \[N, 4\]"),
    ("pooled", {"shape": (2, 3, 8)}, "a side of 4 by default; .* from 1 to 3, as in pooled:3"),
    ("pooled:9", {"shape": (2, 8, 8)}, "a side of '9'; .* a whole number from 1 to 8"),
    ("pooled:x", {"shape": (2, 8, 8)}, "a side of 'x'; .* a whole number from 1 to 8"),
    ("linear", {"init": "copy"}, "head_init is 'copy', but head 'linear' has no layer"),
    ("task", {"init": "copy"}, "head_init is 'copy', but head 'task' has no layer"),
    ("linear", {"init": "zeros"}, "head_init is 'zeros'; it must be random or copy"),
    ("task", {}, "the task has no head of its own"),
    ("task", {"custom": lambda: 3}, "head function returned a int"),
    ("task", {"custom": nn.Identity}, r"gives \[N, 4\] .* it must give \[N, 5\]"),
    ("task", {"custom": lambda: nn.Linear(9, 5)}, r"cannot be applied to smashed data \[N, 4\]"),
    ("task", {"custom": lambda: nn.LSTM(4, 5)}, "returns a tuple"),
    ("task", {"custom": nn.Identity, "n": 4}, "has no parameter to train"),
    ("server", {"n": 6}, r"gives \[N, 5\] .* it must give \[N, 6\]"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "message"), BAD, ids=range(len(BAD)))
def test_a_head_that_does_not_fit(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CutError, match=message):
        made(kind, **options)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def test_weights_that_cannot_be_drawn_anew_are_named() -> None:
    server = cut(nn.Sequential(nn.Linear(3, 4), Scale(), nn.ReLU(), nn.Linear(4, 5)), "0").server
    with pytest.raises(CutError, match=r"'1'.* no reset_parameters\(\); use head_init 'copy'"):
        made("blocks:2", server)
    assert made("blocks:2", server, init="copy")(torch.ones(1, 4)).shape == (1, 5)


def test_what_is_frozen_is_never_drawn_anew() -> None:
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), Scale(), norm, nn.Linear(4, 5))
    nn.init.constant_(norm.get_buffer("running_mean"), 2.0)
    freeze_batch_norm(model)
    for name in ("1.weight", "2.by"):
        model.get_parameter(name).requires_grad_(False)
    server = cut(model, "0").server
    head = made("blocks:3", server)
    frozen, theirs = base_state(head), server.state_dict()
    assert {f"blocks.{name}" for name in ("1.weight", "2.by", "3.running_mean")} <= set(frozen)
    for name, value in frozen.items():
        assert torch.equal(value, theirs[name.removeprefix("blocks.")]), name
    assert not torch.equal(head.state_dict()["blocks.1.bias"], theirs["1.bias"])


# What a task makes of it.


def task(head: Callable[[], nn.Module] | None = None, **changes: Any) -> SplitTask:
    x = torch.arange(18.0).reshape(6, 3)
    fields: dict[str, Any] = {
        "name": "blocks", "model": blocks, "cut": "first", "classes": 5, "head": head,
        "train": lambda: Samples(x, torch.arange(6) % 5),
        "test": lambda: Samples(x, torch.arange(6) % 5),
    }  # fmt: skip
    return SplitTask(**{**fields, **changes})


def test_a_run_has_one_head_for_each_seed() -> None:
    first = task().build_head(1, "blocks:a")
    torch.rand(3)
    assert equal_state(first, task().build_head(1, "blocks:a"))
    assert not equal_state(first, task().build_head(2, "blocks:a"))


def test_a_head_is_a_copy_of_what_the_task_keeps() -> None:
    kept = task()
    with torch.no_grad():
        for parameter in kept.build_head(1, "linear").parameters():
            parameter.zero_()
    assert torch.count_nonzero(kept.build_head(1, "linear").get_parameter("fc.weight")) == 20
    forget(kept.key)


def test_a_head_leaves_the_model_and_the_generator_alone() -> None:
    alone, with_head = task(), task()
    state = torch.get_rng_state()
    with_head.build_head(1, "linear")
    assert torch.equal(torch.get_rng_state(), state)
    assert equal_state(with_head.build(1).client, alone.build(1).client)
    assert equal_state(with_head.build(1).server, alone.build(1).server)


def test_head_and_model_do_not_draw_the_same_numbers() -> None:
    whole = task(model=lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 5)), cut="0")
    head = whole.build_head(1, "server")
    server = whole.build(1).server
    assert not torch.equal(head.get_parameter("1.weight"), server.get_parameter("1.weight"))


def test_a_head_copied_from_the_server() -> None:
    own = task()
    server = own.build(3).server
    assert equal_state(own.build_head(3, "server", "copy"), server)


def test_a_head_of_the_users_own() -> None:
    own = task(head=lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 5)))
    assert count(own.build_head(0, "task")) == 10 + 15
    with pytest.raises(CutError, match="no head of its own"):
        task().build_head(0, "task")
    with pytest.raises(CutError, match=r"it must give \[N, 5\]"):
        task(head=lambda: nn.Linear(4, 3)).build_head(0, "task")
    with pytest.raises(ConfigError, match="head is a Linear; it must be a function"):
        task(head=nn.Linear(4, 5))


def test_a_head_from_arrays() -> None:
    x, y = [[0.0, 1.0, 2.0]] * 4, [0, 1, 2, 3]
    own = SplitTask.from_arrays(
        "arrays", blocks, "first", x, y, x, y, classes=5, head=lambda: nn.Linear(4, 5)
    )
    assert count(own.build_head(0, "task")) == 25


def test_an_output_that_is_no_row_a_sample() -> None:
    own = task(
        model=lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Unflatten(1, (5, 1))),
        cut="0",
    )
    with pytest.raises(CutError, match=r"output of shape \[2, 5, 1\]"):
        own.build_head(0, "linear")


def test_the_shape_of_the_smashed_data_comes_from_the_task() -> None:
    own = load_task("synthetic", train_size=2, test_size=2)
    assert count(own.build_head(0, "linear")) == 128 * 4 * 4 * 10 + 10


def test_every_kind_is_listed() -> None:
    assert HEADS == ("linear", "pooled", "blocks:<layer>", "task")
