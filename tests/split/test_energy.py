"""How much of a gradient a choice holds, worked out by hand, and what is chosen by it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.split import (
    Auto,
    GradientMoments,
    choose_subspace,
    gradient_moments,
    held_energy,
    plain_gradients,
    restrict,
    with_gradients,
)
from sfl_flower.split.parameters.directions import set_directions, sketch_moments, sketched_moments


def half() -> nn.Module:
    return nn.Sequential(OrderedDict(a=nn.Linear(3, 2), norm=nn.LayerNorm(2), b=nn.Linear(2, 2)))


GRADIENT = {
    "a.weight": torch.tensor([[3.0, 0, 4], [0, 1, 0]]),
    "a.bias": torch.tensor([2.0, 0]),
    "norm.weight": torch.tensor([1.0, 1]),
    "norm.bias": torch.tensor([0.0, 1]),
    "b.weight": torch.tensor([[0.0, 2], [0, 0]]),
    "b.bias": torch.tensor([1.0, 1]),
}
"""Energies 26, 4, 2, 1, 4 and 2: 39 in all."""


def moved(trained: str, **buffers: list[list[float]]) -> nn.Module:
    """Return the half, restricted, with these A and B of its first layer."""
    client = half()
    restrict(client, trained)
    for name, value in buffers.items():
        client.get_submodule("a").get_buffer(name).copy_(torch.tensor(value))
    return client


@pytest.mark.parametrize(
    ("client", "held"),
    [
        (moved("all"), 39),
        (moved("norm"), 3),
        (moved("b.*"), 6),
        # Along the first input 9, and the bias; however long the row of A is.
        (moved("subspace:1:a", subspace_basis=[[5.0, 0, 0]]), 9 + 4),
        # Along 0.6 x₁ + 0.8 x₃ all of the first row.
        (moved("subspace:1:a", subspace_basis=[[3.0, 0, 4]]), 25 + 4),
        (moved("subspace:2:a", subspace_basis=[[3.0, 0, 4], [0, 1, 0]]), 26 + 4),
        # Of the outputs the second alone: 1 of 26.
        (
            moved(
                "core:1:a", subspace_basis=[[0.0, 1, 0]], subspace_outputs=[[0.0], [2.0]]
            ), 1 + 4,
        ),
        (
            moved("core:1:a", subspace_basis=[[0.0, 1, 0]], subspace_outputs=[[1.0], [0.0]]), 4,
        ),
    ],
)  # fmt: skip
def test_the_energy_that_is_held_by_hand(client: nn.Module, held: float) -> None:
    assert held_energy(client, GRADIENT) == pytest.approx(held)


class Adapted(nn.Module):
    """A layer of peft with an adapter."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(3, 2).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(3, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, 2, bias=False)})


def test_an_adapter_holds_what_its_frozen_half_spans() -> None:
    client = nn.Sequential(OrderedDict(a=Adapted(1)))
    client.get_parameter("a.lora_A.default.weight").data = torch.tensor([[3.0, 0, 4]])
    gradient = {"a.base_layer.weight": GRADIENT["a.weight"]}
    assert held_energy(client, gradient) == pytest.approx(25)
    client.get_parameter("a.lora_B.default.weight").requires_grad_(False)
    assert held_energy(client, gradient) == 0


def test_an_adapter_is_no_layer_to_move() -> None:
    plain = OrderedDict(a=Adapted(2), b=nn.Linear(2, 2))
    client = nn.Sequential(plain)
    restrict(client, "subspace:1")
    assert [n for n, p in client.named_parameters() if p.requires_grad] == ["b.bias", "b.subspace"]
    for trained in ("subspace:1", "subspace:1:*lora_B*", "core:1"):
        with pytest.raises(ConfigError, match="adapters froze the weights, set lora_rank=0; name"):
            restrict(nn.Sequential(OrderedDict(a=Adapted(2))), trained)


def test_gradients_are_those_of_every_weight_of_the_model_itself() -> None:
    client = half()
    client.get_submodule("a").requires_grad_(False)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = plain_gradients([with_gradients(client)], client(x).square().mean())
    assert set(found) == set(GRADIENT)


def moments(rows: dict[str, list[Tensor]], **energy: float) -> GradientMoments:
    """Return moments of the layers' gradients, one a sample, and of other parameters."""
    found = GradientMoments(dict(energy))
    for name, gradients in rows.items():
        found.inputs[name] = sum((g.t() @ g).double() for g in gradients)  # type: ignore[assignment]
        found.outputs[name] = sum((g @ g.t()).double() for g in gradients)  # type: ignore[assignment]
        found.energy[f"{name}.weight"] = sum(float(g.square().sum()) for g in gradients)
    return found


def test_moments_are_sums_over_samples() -> None:
    client = with_gradients(nn.Sequential(OrderedDict(a=nn.Linear(2, 1))))
    x = torch.tensor([[1.0, 0], [0, 2]])
    # The loss of a sample is its output, so its gradient is its input.
    found = gradient_moments(client, (client(row).sum() for row in x))
    assert torch.equal(found.inputs["a"], torch.tensor([[1.0, 0], [0, 4]]).double())
    assert found.outputs["a"].tolist() == [[5.0]]
    assert found.energy == {"a.weight": 5.0, "a.bias": 2.0}


def test_directions_of_gradients_leave_out_inputs_that_do_not_matter() -> None:
    inputs = {"a": torch.diag(torch.tensor([4.0, 1.0, 9.0])).double()}
    gradients = moments({"a": [torch.tensor([[0.0, 2, 0], [0, 0, 1]])]})
    client = moved("subspace:1:a")
    set_directions(client, inputs)
    basis = client.get_submodule("a").get_buffer("subspace_basis")
    assert torch.allclose(basis, torch.tensor([[0, 0, 1 / 3]]))
    set_directions(client, inputs, gradients)
    assert torch.allclose(basis, torch.tensor([[0.0, 1, 0]]))
    core = moved("core:1:a")
    set_directions(core, inputs, gradients)
    assert torch.allclose(
        core.get_submodule("a").get_buffer("subspace_outputs"), torch.tensor([[1.0], [0]])
    )


def chosen(auto: Auto, **energy: float) -> str:
    """Choose where a's directions hold 30, 6 and 0, its bias 4, and b's 10 and 0."""
    weights = {
        "a": [torch.tensor([[30**0.5, 0, 0], [0, 6**0.5, 0]])],
        "b": [torch.tensor([[10**0.5, 0], [0, 0]])],
    }
    given = {"a.bias": 4.0, "norm.weight": 1.0, "norm.bias": 9.0, **energy}
    return choose_subspace(half(), moments(weights, **given), auto)


def test_what_is_chosen_by_hand() -> None:
    """18 parameters: a direction takes 2, a layer's first one its bias with it, a norm 2."""
    assert chosen(Auto(0.5, 1.0)) == "subspace:a=1"  # 34 of 60 with 4 parameters
    assert chosen(Auto(0.7, 1.0)) == "subspace:a=1,norm.bias=all"  # 43
    assert chosen(Auto(0.8, 1.0)) == "subspace:a=2,norm.bias=all"  # 49
    assert chosen(Auto(1.0, 1.0)) == "subspace:a=2,b=1,norm.bias=all,norm.weight=all"
    assert chosen(Auto(1.0, 6 / 18)) == "subspace:a=1,norm.bias=all"
    with pytest.raises(ConfigError, match=r"budget of 0.01 of the 18 parameters .* give more"):
        chosen(Auto(1.0, 0.01))


def test_what_is_chosen_can_be_opened() -> None:
    client: Any = copy.deepcopy(half())
    restrict(client, chosen(Auto(1.0, 1.0)))
    sizes = {n: tuple(p.shape) for n, p in client.named_parameters() if p.requires_grad}
    assert sizes == {
        "a.bias": (2,), "a.subspace": (2, 2), "norm.weight": (2,), "norm.bias": (2,),
        "b.bias": (2,), "b.subspace": (2, 1),
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"trains no parameter 'c\.weight'"):
        restrict(half(), "subspace:a=1,c.weight=all")
    with pytest.raises(ConfigError, match=r"'b' has 2 inputs; R must be in \[1, 2\]"):
        restrict(half(), "subspace:b=3")
    with pytest.raises(ConfigError, match=r"'a' has 2 outputs; R must be in \[1, 2\]"):
        restrict(half(), "core:3:a")


def test_sketches_tell_the_leading_directions_and_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    client = nn.Sequential(OrderedDict(a=nn.Linear(40, 2)))
    restrict(client, "subspace:3")
    # Four strong directions and a weak rest.
    parts = [torch.randn(40, 4, generator=generator).double() for _ in range(2)]
    rest = 1e-3 * torch.eye(40).double()
    moments = [{"a": part @ part.t() + rest} for part in parts]

    def draw(name: str, width: int, columns: int) -> Any:
        drawn = torch.Generator().manual_seed(len(name))
        return torch.randn(width, columns, generator=drawn).double().numpy()

    sketches = [sketch_moments(client, each, draw) for each in moments]
    assert sketches[0].shape == (40 * (3 + 8),) and sketches[0].dtype == torch.float32
    mean = torch.stack(sketches).double().mean(dim=0)
    found = sketched_moments(client, mean, draw)["a"]
    wanted = (moments[0]["a"] + moments[1]["a"]) / 2
    bases = []
    for moment in (found, wanted):
        set_directions(client, {"a": moment})
        bases.append(client.get_submodule("a").get_buffer("subspace_basis").clone())
    assert torch.allclose(bases[0], bases[1], rtol=1e-2, atol=1e-3)
    with pytest.raises(ConfigError, match=r"has 5 numbers, expected 440"):
        sketched_moments(client, mean[:5], draw)
    assert sketched_moments(client, torch.zeros(440).double(), draw) == {}
