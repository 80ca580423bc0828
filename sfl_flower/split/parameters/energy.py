"""How much of a gradient a choice of trained parameters can follow, and what to choose by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.split.parameters.directions import NOTHING, GradientMoments
from sfl_flower.split.parameters.layouts import in_groups, layer_outputs, weight_matrices, weight_of
from sfl_flower.split.parameters.subspace import (
    BASIS,
    FACTOR,
    OUTPUTS,
    Auto,
    movable_layers,
)

__all__ = ["choose_subspace", "held_energy"]


def held_energy(client: nn.Module, gradients: Mapping[str, Tensor]) -> float:
    """Return ‖projection of a gradient on what a client half trains‖².

    Over ‖gradient‖² it is the share of energy.  Of the gradient G of a weight that moves as
    ``W₀ + R A`` it is ``‖G Qᵀ‖²``, with Q orthonormal rows of the space of A; as ``W₀ + B C A``
    ``‖Bᵀ G Qᵀ‖²``; beside an adapter of peft, whose B is zero at the start, that of its A.

    Parameters
    ----------
    client : nn.Module
        The client half, restricted, its directions set.
    gradients : mapping of str to Tensor
        The gradient of each weight of the model itself, by the names of the half.
    """
    trained = {
        name
        for name, parameter in client.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    modules = dict(client.named_modules())
    held = 0.0
    for name, gradient in gradients.items():
        layer, _, last = name.rpartition(".")
        if name in trained:
            inside = gradient
        elif last != "weight" or (spaces := _spaces(modules, layer, trained)) is None:
            continue
        else:
            basis, outputs = spaces
            rows = weight_matrices(modules[layer], gradient.detach().double())
            inside = rows @ _orthonormal(basis.mT)
            if outputs is not None:
                inside = _orthonormal(in_groups(outputs, basis)).mT @ inside
        held += float(inside.detach().double().square().sum())
    return held


def _orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns of the same space, float64; columns of 0 stay, they come last."""
    found: Tensor = torch.linalg.qr(columns.double()).Q
    return found * columns.any(dim=-2, keepdim=True)


def _spaces(
    modules: Mapping[str, nn.Module], layer: str, trained: set[str]
) -> tuple[Tensor, Tensor | None] | None:
    """Return A and B of a layer's weight, None where it does not move."""
    module = modules[layer]
    if FACTOR in module._parameters:
        return module.get_buffer(BASIS), module._buffers.get(OUTPUTS)
    around, _, last = layer.rpartition(".")
    if last != "base_layer":
        return None
    adapters = []
    own = modules[around]
    # A may be a buffer, where it is frozen and travels.
    for name, parameter in chain(own.named_parameters(), own.named_buffers()):
        if not name.startswith("lora_A.") or not name.endswith(".weight"):
            continue
        other = f"{around}.{name.replace('lora_A', 'lora_B')}"
        if other in trained:
            adapters.append(parameter.detach())
    return (torch.cat(adapters), None) if adapters else None


@dataclass(frozen=True)
class _Item:
    """What may be trained next: its energy, its parameters, and the term that asks for it."""

    energy: float
    size: int
    name: str
    rank: int  # 0: a parameter as it is

    @property
    def worth(self) -> float:
        return self.energy / self.size


def choose_subspace(client: nn.Module, moments: GradientMoments, auto: Auto) -> str:
    """Return the choice, as ``subspace:LAYER=R,…,PARAMETER=all``, that holds most with least.

    One direction of a layer after another, and small parameters as they are (norms, embeddings of
    positions), are taken in the order of energy over parameters, until the share is held or the
    budget spent.  A layer's first direction brings its bias.

    Parameters
    ----------
    client : nn.Module
        The client half, not restricted by the choice.
    moments : GradientMoments
        Of its gradients on some samples.
    auto : Auto
        Share and budget.

    Raises
    ------
    ConfigError
        The budget is below the smallest choice.
    """
    named = dict(client.named_parameters())
    left = int(auto.budget * sum(parameter.numel() for parameter in named.values()))
    wanted = auto.share * sum(moments.energy.values())
    items, taken = _items(client, moments), list[_Item]()
    while items and wanted > 0:
        at = max(range(len(items)), key=lambda i: items[i][0].worth)
        item = items[at].pop(0)
        if item.size > left or not items[at]:  # what follows of this layer is as large
            del items[at]
        if item.size > left:
            continue
        taken.append(item)
        left, wanted = left - item.size, wanted - item.energy
    if not taken:
        raise ConfigError(
            f"trained is subspace:auto with a budget of {auto.budget:g} of the "
            f"{sum(p.numel() for p in named.values())} parameters of the client half, which is "
            "less than one direction of a layer; give more, as in subspace:auto:0.9:0.1."
        )
    ranks = {item.name: item.rank for item in taken if item.rank}
    layers = [f"{name}={ranks[name]}" for name, _ in movable_layers(client) if name in ranks]
    whole = [f"{item.name}=all" for item in taken if not item.rank]
    return f"subspace:{','.join([*layers, *sorted(whole)])}"


def _items(client: nn.Module, moments: GradientMoments) -> list[list[_Item]]:
    """Return what may be taken, in chains: each layer's directions, and every other parameter."""
    named = {name: p for name, p in client.named_parameters() if p.requires_grad}
    chains: list[list[_Item]] = []
    inside: set[str] = set()
    for name, layer in movable_layers(client):
        inside |= {f"{name}.weight", f"{name}.bias"}
        if name not in moments.inputs or not weight_of(layer).requires_grad:
            continue
        found = torch.linalg.eigvalsh(moments.inputs[name]).flip(-1)
        found = found.where(found > NOTHING * found.max(), 0.0)
        if found.dim() > 1:  # a direction of a grouped convolution is one of each group
            found = found.sum(dim=0)
        values = found[found > 0].tolist()
        if not values:
            continue
        bias = named.get(f"{name}.bias")
        size = layer_outputs(layer)
        chain = [_Item(value, size, name, n) for n, value in enumerate(values, 1)]
        if bias is not None:
            first, own = chain[0], moments.energy.get(f"{name}.bias", 0.0)
            chain[0] = _Item(first.energy + own, first.size + bias.numel(), name, 1)
        chains.append(chain)
    for name, parameter in named.items():
        if name not in inside and name in moments.energy:
            chains.append([_Item(moments.energy[name], parameter.numel(), name, 0)])
    return chains
