"""Grouped convolutions that move in a few directions of what enters each of their groups."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.data import Samples, subspace_draw
from sfl_flower.errors import ConfigError
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted, resolved
from sfl_flower.split import (
    Auto,
    GradientMoments,
    choose_subspace,
    fit_subspace,
    gradient_moments,
    held_energy,
    input_moments,
    plain_weights,
    restrict,
    with_gradients,
)
from sfl_flower.split.parameters.directions import set_directions, sketch_moments, sketched_moments
from sfl_flower.training.meter import counting_flops
from tests import tiny
from tests.tiny import train


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def opened(conv: nn.Module, trained: str) -> nn.Module:
    client = nn.Sequential(OrderedDict(conv=conv))
    restrict(client, trained)
    return client


def twin(conv: Any, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Any:
    """Return a convolution like another one, of this weight."""
    inputs, outputs = groups * weight.shape[1], len(weight)
    found = type(conv)(
        inputs, outputs, conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups,
        bias is not None, conv.padding_mode,
    )  # fmt: skip
    found.weight.data.copy_(weight)
    if bias is not None:
        found.bias.data.copy_(bias)
    return found


def block_diagonal(conv: Any, weight: Tensor) -> Tensor:
    """Return the weight of a convolution without groups that gives the same."""
    groups, (outputs, inputs) = conv.groups, weight.shape[:2]
    whole = torch.zeros(outputs, groups * inputs, *weight.shape[2:])
    for j, part in enumerate(weight.chunk(groups)):
        rows = slice(j * outputs // groups, (j + 1) * outputs // groups)
        whole[rows, j * inputs : (j + 1) * inputs] = part
    return whole


CONVOLUTIONS = [
    (nn.Conv2d(4, 6, 3, groups=2), 3),
    (nn.Conv2d(3, 3, 3, groups=3, padding=1, stride=2, bias=False), 9),
    (nn.Conv2d(3, 6, (3, 2), groups=3, padding="same"), 2),
    (nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="reflect", dilation=2), 1),
    (nn.Conv1d(4, 8, 3, groups=4, padding=1, padding_mode="circular"), 2),
    (nn.Conv1d(4, 6, 1, groups=2, bias=False), 2),
]


def entering(conv: Any) -> Tensor:
    return randn(20, conv.in_channels, *[9] * (conv.weight.dim() - 2), seed=1)


@pytest.mark.parametrize(("conv", "rank"), CONVOLUTIONS)
def test_a_grouped_convolution_moves_as_its_groups_and_as_a_block_diagonal_one(
    conv: Any, rank: int
) -> None:
    x, groups = entering(conv), conv.groups
    client = opened(twin(conv, conv.weight, conv.bias, groups), f"subspace:{rank}")
    fit_subspace(client, x)
    width = conv.weight[0].numel()
    assert client.get_parameter("conv.subspace").shape == (len(conv.weight), rank)
    basis = client.get_buffer("conv.subspace_basis")
    assert basis.shape == (groups, rank, width)
    assert torch.equal(client(x), nn.Sequential(conv)(x))
    client.get_parameter("conv.subspace").data.copy_(randn(len(conv.weight), rank, seed=2))
    after = client(x)
    assert not torch.allclose(after, conv(x), atol=0.1)
    # Each group is a convolution of its own, of its channels.
    biases = [None] * groups if conv.bias is None else conv.bias.chunk(groups)
    rows = client.get_parameter("conv.subspace").chunk(groups)
    parts = []
    for j, part in enumerate(x.chunk(groups, 1)):
        own = opened(twin(conv, conv.weight.chunk(groups)[j], biases[j]), f"subspace:{rank}")
        fit_subspace(own, part)
        torch.testing.assert_close(own.get_buffer("conv.subspace_basis"), basis[j])
        own.get_parameter("conv.subspace").data.copy_(rows[j])
        parts.append(own(part))
    torch.testing.assert_close(after, torch.cat(parts, 1), rtol=1e-4, atol=1e-5)
    # What is left is a plain weight, and that of a block-diagonal one without groups.
    plain = plain_weights(client.state_dict())
    assert plain.keys() == {f"conv.{name}" for name in conv.state_dict()}
    left = twin(conv, plain["conv.weight"], conv.bias, groups)
    torch.testing.assert_close(after, left(x), rtol=1e-4, atol=1e-5)
    dense = twin(conv, block_diagonal(conv, plain["conv.weight"]), conv.bias)
    torch.testing.assert_close(after, dense(x), rtol=1e-4, atol=1e-5)


def test_the_directions_of_each_group_by_hand() -> None:
    """Kernels of one number: a channel's direction is 1 over the root of its mean square."""
    client = opened(nn.Conv2d(3, 3, 1, groups=3, bias=False), "subspace:1")
    x = torch.tensor([2.0, 0.0, 1 / 3]).reshape(1, 3, 1, 1).expand(4, 3, 2, 2)
    fit_subspace(client, x)
    basis = client.get_buffer("conv.subspace_basis")
    torch.testing.assert_close(basis.flatten(), torch.tensor([0.5, 0.0, 3.0]))
    # R moves each output by itself, and not at all where nothing enters.
    before = client(x)
    client.get_parameter("conv.subspace").data.fill_(1.0)
    moved = (client(x) - before)[0, :, 0, 0]
    torch.testing.assert_close(moved, torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(
        ConfigError, match=r"layer 'conv', but its inputs .* span 0 in no group mor"
    ):
        fit_subspace(client, torch.zeros(4, 3, 2, 2))


def test_a_core_of_each_group() -> None:
    """W₀ + B C A, group by group: C is [groups * r, r]."""
    conv = nn.Conv2d(4, 6, 3, groups=2)
    client = opened(conv, "core:2")
    x = entering(conv)
    gradients = GradientMoments()
    for name, n in (("inputs", 18), ("outputs", 3)):
        roots = randn(2, n, n, seed=n).double()
        getattr(gradients, name)["conv"] = roots @ roots.mT
    set_directions(client, input_moments(client, x), gradients)
    core, outputs = (
        client.get_parameter("conv.subspace"),
        client.get_buffer("conv.subspace_outputs"),
    )
    assert (core.shape, outputs.shape) == ((4, 2), (6, 2))
    for part in outputs.chunk(2):
        torch.testing.assert_close(part.t() @ part, torch.eye(2))
    core.data.copy_(randn(4, 2))
    basis = client.get_buffer("conv.subspace_basis")
    change = torch.cat([outputs[3 * j :][:3] @ core[2 * j :][:2] @ basis[j] for j in range(2)])
    plain = plain_weights(client.state_dict())["conv.weight"]
    torch.testing.assert_close(plain, conv.weight + change.reshape(6, 2, 3, 3))
    left = twin(conv, plain, conv.bias, 2)
    torch.testing.assert_close(client(x), left(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (
            "subspace:10",
            r"'conv' has 9 inputs a group; R must be in \[1, 9\]; .*conv=9,\*=10\), or",
        ),
        (
            "core:2",
            r"'conv' has 1 output a group; R must be in \[1, 1\]; .*\(core:conv=1,\*=2\), or",
        ),
    ],
)
def test_more_directions_than_a_group_has_are_refused(trained: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(nn.Conv2d(4, 4, 3, groups=4), trained)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3, groups=4), out=nn.Conv2d(4, 12, 3)))
    number = trained.partition(":")[2]
    restrict(net, f"{trained.partition(':')[0]}:conv=1,*={number}")  # as the error says
    assert net.get_buffer("out.subspace_basis").shape == (int(number), 36)


def test_the_energy_that_is_held_by_hand() -> None:
    gradient = {"conv.weight": torch.tensor([[3.0, 4.0], [1.0, 2.0]]).reshape(2, 1, 2)}
    client = opened(nn.Conv1d(2, 2, 2, groups=2, bias=False), "subspace:1")
    basis = client.get_buffer("conv.subspace_basis")
    basis.copy_(torch.tensor([[[6.0, 8.0]], [[0.0, 0.1]]]))
    assert held_energy(client, gradient) == pytest.approx(25 + 4)
    basis[1] = 0  # a group that does not move holds nothing
    assert held_energy(client, gradient) == pytest.approx(25)


def test_gradients_and_the_choice_by_them_by_hand() -> None:
    """A direction of a grouped layer is one of each group, for as many numbers as outputs."""
    client = with_gradients(
        nn.Sequential(OrderedDict(conv=nn.Conv1d(2, 2, 2, groups=2, bias=False)))
    )
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    # The loss of a sample is the sum of its outputs, so a gradient is what enters.
    found = gradient_moments(client, (client(row[None]).sum() for row in x))
    assert found.inputs["conv"].tolist() == [[[9.0, 0], [0, 4]], [[0, 0], [0, 17]]]
    assert found.outputs["conv"].tolist() == [[[13.0]], [[17.0]]]
    assert found.energy == {"conv.weight": 30.0}
    # Of 30, one direction holds 9 + 17, the second 4 of the first group alone.
    assert choose_subspace(client, found, Auto(0.85, 1.0)) == "subspace:conv=1"
    assert choose_subspace(client, found, Auto(0.9, 1.0)) == "subspace:conv=2"
    assert choose_subspace(client, found, Auto(0.9, 0.5)) == "subspace:conv=1"


def test_sketches_of_groups_add_up() -> None:
    client = opened(nn.Conv2d(3, 3, 3, groups=3), "subspace:2")
    x = randn(8, 3, 6, 6)
    x[:, 1] = 0
    moments = [input_moments(client, part) for part in x.chunk(2)]
    draw = subspace_draw(0)
    sketches = [sketch_moments(client, each, draw) for each in moments]
    assert sketches[0].shape == (3 * 9 * 9,)
    found = sketched_moments(client, torch.stack(sketches).double().mean(dim=0), draw)["conv"]
    torch.testing.assert_close(found, input_moments(client, x)["conv"], rtol=1e-3, atol=1e-3)
    assert not bool(found[1].any())


def test_operations_are_those_of_the_groups() -> None:
    client = opened(nn.Conv2d(4, 8, 3, groups=4, bias=False), "subspace:2")
    with counting_flops() as counter, torch.no_grad():
        client(randn(2, 4, 5, 5))
    # 2 samples, 9 positions: 8 outputs of 9 inputs, 4 x 2 directions of as many, 8 of 2 directions.
    assert counter.get_total_flops() == 2 * 9 * 2 * (8 * 9 + 4 * 2 * 9 + 8 * 2)


class Separable(nn.Module):
    """A row of numbers as two channels, a depthwise convolution and one across channels."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(2, 4, 2, groups=2, dtype=dtype)
        self.across = nn.Conv1d(4, 3, 1)
        if dtype != torch.float32:
            self.depthwise.requires_grad_(False)
        self.act = nn.Tanh()
        self.out = nn.Linear(6, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.depthwise(x.reshape(-1, 2, 3).to(self.depthwise.weight.dtype)).float()
        z = self.act(self.across(z.tanh()))
        return self.out(z.flatten(1))  # type: ignore[no-any-return]


def problem(trained: str, dtype: torch.dtype = torch.float32) -> Any:
    def public() -> Samples:
        return tiny.samples(20, 7)

    return tiny.task(trained=trained, public=public, build=lambda: Separable(dtype))


@pytest.mark.flower
@pytest.mark.parametrize("trained", ["subspace:2", "core:1", "subspace:auto:0.8:1"])
def test_a_run_replays_to_the_bit_and_leaves_a_plain_model(trained: str) -> None:
    task = problem(trained)
    options: dict[str, Any] = {"rounds": 3, "client_lr": 0.2}
    replayed, loaded = (train(task, sync=s, **options) for s in ("replay", "download"))
    assert tiny.equal(replayed.model, loaded.model)
    assert replayed.total("failures") + replayed.total("rejected") == 0
    first = plain_weights(fitted(resolved(task, 0), 0).client.state_dict())
    assert not torch.equal(replayed.model["depthwise.weight"], first["depthwise.weight"])
    plain = Separable()
    plain.load_state_dict(replayed.model)
    found = task.evaluate(plain.eval())
    assert found["loss"] == pytest.approx(replayed.strategy.records[-1].metrics["loss"], rel=1e-5)


@pytest.mark.flower
def test_other_ways_to_run_it() -> None:
    from_clients = train(problem("subspace:2"), subspace_from="clients", client_lr=0.1)
    # From each of four clients a sketch of 2 groups of 2 x 2, and of 4 x 4 numbers, float32.
    assert from_clients.strategy.ledger.up["moments"] == 4 * 4 * (2 * 4 + 16)
    low = train(problem("subspace:2:depthwise", torch.bfloat16), client_lr=0.5)
    assert low.model["depthwise.weight"].dtype == torch.bfloat16
    half = low.strategy.client_half
    assert bool(half.get_parameter("depthwise.subspace").any())
    stacked = train(problem("subspace:2"), stack=2, direction="rank_one", client_lr=0.1)
    for trial in (from_clients, low, stacked):
        assert trial.total("failures") + trial.total("rejected") == 0 and trial.total("replies")


def test_all_directions_hold_all_of_the_gradient() -> None:
    task = problem("subspace:2:depthwise")
    gradients = [
        {name: g for name, g in each.items() if name.startswith("depthwise")}
        for each in sample_gradients(task, 0, 2, 10)
    ]
    assert energy_share(fitted(task, 0).client, gradients).batches == pytest.approx(1.0, rel=1e-5)
