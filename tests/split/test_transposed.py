"""Layers that keep their weight as [in, out], as those of GPT-2 do, and move in a subspace."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sfl_flower.errors import ConfigError
from sfl_flower.split import (
    GradientMoments,
    gradient_moments,
    held_energy,
    input_moments,
    plain_weights,
    restrict,
    with_gradients,
)
from sfl_flower.split.parameters.directions import set_directions
from sfl_flower.split.parameters.layouts import is_transposed


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Return a Conv1D and the linear layer that gives the same."""
    weight, bias = randn(inputs, outputs, seed=1), randn(outputs, seed=2)
    one, other = Conv1D(outputs, inputs), nn.Linear(inputs, outputs)
    one.weight.data, other.weight.data = weight.clone(), weight.t().clone()
    one.bias.data, other.bias.data = bias.clone(), bias.clone()
    return tuple(nn.Sequential(OrderedDict(fc=layer)) for layer in (one, other))  # type: ignore[return-value]


@pytest.mark.parametrize("trained", ["subspace:1", "subspace:3", "core:2", "core:3"])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (3, 5), (4, 3)])
def test_it_moves_as_the_linear_layer_would(inputs: int, outputs: int, trained: str) -> None:
    """Also where every factor is square, and nothing but the layout of A tells them apart."""
    x, halves = randn(20, 4, inputs, seed=3), pair(inputs, outputs)
    gradients = GradientMoments()
    roots = {"inputs": randn(inputs, inputs).double(), "outputs": randn(outputs, outputs).double()}
    for name, root in roots.items():
        getattr(gradients, name)["fc"] = root @ root.t()
    found = []
    for half in halves:
        restrict(half, trained)
        by = gradients if trained.startswith("core") else None
        set_directions(half, input_moments(half, x), by)
        own = half.get_parameter("fc.subspace")
        own.data.copy_(randn(*own.shape, seed=4))
        assert own.requires_grad and half.get_parameter("fc.bias").requires_grad
        found.append(half)
    one, other = found
    assert one.get_buffer("fc.subspace_basis").shape[0] == 1
    basis = one.get_buffer("fc.subspace_basis")[0]
    torch.testing.assert_close(basis, other.get_buffer("fc.subspace_basis"))
    torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)
    left, linear = (plain_weights(half.state_dict()) for half in found)
    assert left.keys() == {"fc.weight", "fc.bias"}
    torch.testing.assert_close(left["fc.weight"], linear["fc.weight"].t())
    plain = pair(inputs, outputs)[0]
    plain.load_state_dict(left)
    torch.testing.assert_close(plain(x), one(x), rtol=1e-4, atol=1e-5)


def test_the_energy_that_is_held_by_hand() -> None:
    """Of a weight [in, out] = [2, 2]: its rows are inputs."""
    client = pair(2, 2)[0]
    restrict(client, "subspace:1")
    client.get_buffer("fc.subspace_basis").copy_(torch.tensor([[5.0, 0.0]]))
    gradient = {"fc.weight": torch.tensor([[3.0, 4.0], [1.0, 2.0]])}
    assert held_energy(client, gradient) == pytest.approx(25)  # what the first input meets


class Adapted(nn.Module):
    """A layer of peft with an adapter beside a square Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = Conv1D(2, 2).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(2, 1, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(1, 2, bias=False)})


def test_an_adapter_of_a_square_layer_holds_what_its_frozen_half_spans() -> None:
    client = nn.Sequential(OrderedDict(fc=Adapted()))
    client.get_parameter("fc.lora_A.default.weight").data = torch.tensor([[2.0, 0.0]])
    gradient = {"fc.base_layer.weight": torch.tensor([[3.0, 4.0], [1.0, 2.0]])}
    assert held_energy(client, gradient) == pytest.approx(25)


def test_moments_of_gradients_are_those_of_the_inputs() -> None:
    client = with_gradients(pair(2, 1)[0])
    x = torch.tensor([[1.0, 0], [0, 2]])
    found = gradient_moments(client, (client(row[None]).sum() for row in x))
    assert found.inputs["fc"].tolist() == [[1.0, 0], [0, 4]]
    assert found.outputs["fc"].tolist() == [[5.0]]


def test_more_directions_than_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fc' has 3 inputs; R must be in \[1, 3\]"):
        restrict(pair(3, 5)[0], "subspace:4")
    with pytest.raises(ConfigError, match=r"'fc' has 5 inputs; R must be in \[1, 5\]"):
        restrict(pair(5, 7)[0], "core:6")


def test_a_layer_of_that_name_by_somebody_else_is_another() -> None:
    own = type("Conv1D", (nn.Module,), {})()
    assert not is_transposed(own) and is_transposed(Conv1D(2, 3))
    assert is_transposed(type("Mine", (Conv1D,), {})(2, 3))


def test_transformers_need_not_be_there() -> None:
    code = (
        "import sys; from torch import nn; from sfl_flower.split import restrict; "
        "restrict(nn.Sequential(nn.Linear(2, 2)), 'subspace:1'); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
