"""Layers of a client half that move in a few directions of what enters them.

A layer with weight W₀ moves as ``W₀ + R A`` with W₀ and A frozen: the r rows of A are the leading
directions of the layer's inputs (of the patches that a convolution sees), where nearly all of a
weight's gradient lies, for it is a sum of outer products with just these inputs.  A group of a
convolution has r directions of its own, those of the channels that it sees.  R is an ordinary
trained parameter, zero at the start.  So zeroth order estimates a few hundred numbers in place of
thousands (AGZO, arXiv 2601.17261, takes the directions anew from each batch; the EVA initialisation
of peft trains A as well).

``core:R`` moves a layer as ``W₀ + B C A``: the r columns of B are directions of the layer's
outputs, and only C, of r x r numbers, is trained (LoRA-XS, arXiv 2405.17604, where A and B are of
W₀).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.errors import ConfigError
from sfl_flower.split.parameters.layouts import (
    basis_shape,
    in_groups,
    is_transposed,
    layer_groups,
    layer_outputs,
    layer_width,
    weight_of,
)
from sfl_flower.split.parameters.quantised import dequantised, is_quantised
from sfl_flower.split.parameters.travelling import BASIS, FACTOR, OUTPUTS

__all__ = [
    "BASIS",
    "FACTOR",
    "OUTPUTS",
    "Auto",
    "Subspace",
    "movable_layers",
    "open_subspace",
    "opened_layers",
    "plain_weights",
    "read_subspace",
]

_FORM = re.compile(r"(subspace|core):(?:([1-9][0-9]{0,4})(?::(.+))?|(.+=.+))")
_RANK = re.compile(r"(.+)=(all|[1-9][0-9]{0,4})")
_AUTO = re.compile(r"subspace:auto(?::([0-9.]+))?(?::([0-9.]+))?")
_SAYS = (
    "a subspace is subspace:R, with R directions a layer from 1, as in subspace:4, "
    "subspace:R:PATTERN for layers whose names match, subspace:LAYER=R,LAYER=R,PARAMETER=all, or "
    "subspace:auto[:SHARE[:BUDGET]] with numbers above 0 up to 1; core:R takes R directions of the "
    "outputs too"
)


@dataclass(frozen=True)
class Subspace:
    """What ``trained="subspace:R"`` and its like ask for.

    Attributes
    ----------
    ranks : tuple of (str, int)
        Which layers, by name as ``fnmatch`` reads it, and the directions r of each; a layer has
        those of the first that matches.
    whole : tuple of str
        Other parameters that are trained as they are, by name.
    core : bool
        Whether the outputs have r directions too, and an r x r core is trained.
    listed : bool
        Whether layers are named one by one, as the server does where it chooses.
    """

    ranks: tuple[tuple[str, int], ...]
    whole: tuple[str, ...] = ()
    core: bool = False
    listed: bool = False

    def rank(self, layer: str) -> int:
        """Return the directions of a layer, 0 where it is not chosen."""
        return next((rank for pattern, rank in self.ranks if fnmatchcase(layer, pattern)), 0)


@dataclass(frozen=True)
class Auto:
    """What ``trained="subspace:auto:SHARE:BUDGET"`` asks for.

    Attributes
    ----------
    share : float
        Of the gradient's energy, that the choice is to hold.
    budget : float
        Of the client half's parameters, that it may train at most.
    """

    share: float = 0.9
    budget: float = 0.02


def read_subspace(trained: str) -> Subspace | Auto | None:
    """Return the subspace that a choice of parameters names, None where it names none.

    Raises
    ------
    ConfigError
        It begins with ``subspace`` or ``core:`` and is none of their forms.
    """
    if not trained.startswith(("subspace", "core:")):
        return None
    if auto := _AUTO.fullmatch(trained):
        given = [float(part) for part in auto.groups() if part and part.count(".") < 2]
        if len(given) == sum(part is not None for part in auto.groups()) and all(
            0 < part <= 1 for part in given
        ):
            return Auto(*given)
    elif form := _FORM.fullmatch(trained):
        core, rank, pattern, listed = form[1] == "core", form[2], form[3], form[4]
        if rank:
            return Subspace(((pattern or "*", int(rank)),), core=core)
        items = [_RANK.fullmatch(item) for item in listed.split(",")]
        pairs = [(item[1], item[2]) for item in items if item is not None]
        if len(pairs) == len(items):
            ranks = tuple((name, int(rank)) for name, rank in pairs if rank != "all")
            whole = tuple(name for name, rank in pairs if rank == "all")
            return Subspace(ranks, whole, core, listed=True)
    raise ConfigError(f"trained is '{trained}'; {_SAYS}.")


def open_subspace(client: nn.Module, trained: str) -> None:
    """Freeze a client half but for R and the bias of each chosen layer, in place.

    A, and B, are zero until `fit_subspace`, or weights that are loaded, say what they are.

    Parameters
    ----------
    client : nn.Module
        The client half.
    trained : str
        A form of ``subspace:`` or ``core:``; `read_subspace`.

    Raises
    ------
    ConfigError
        No layer can move so, or one has fewer inputs or outputs than directions are asked for.
    """
    chosen = read_subspace(trained)
    if isinstance(chosen, Auto):
        return  # the server chooses when a run begins; until then it is all the model has
    assert chosen is not None
    layers = {
        name: layer
        for name, layer in movable_layers(client)
        if chosen.rank(name) and (weight_of(layer).requires_grad or _stays(weight_of(layer)))
    }
    if not layers and chosen.ranks:
        names = ", ".join(name for name, _ in movable_layers(client)) or "none"
        patterns = "', '".join(pattern for pattern, _ in chosen.ranks)
        adapters = any(_in_adapter(name) for name, _ in client.named_parameters())
        beside = "adapters froze the weights, set lora_rank=0; " if adapters else ""
        raise ConfigError(
            f"trained is '{trained}' and chooses no layer of the client half by "
            f"'{patterns}': linear layers (transformers' Conv1D is one) and 1-d and 2-d "
            "convolutions that the model trains, with a weight of their own, can move so "
            f"({names}); {beside}name one of them, or use another choice of parameters."
        )
    for name, layer in layers.items():
        _check_rank(trained, chosen, name, layer)
    _freeze(client, trained, chosen, layers.values())
    for name, layer in layers.items():
        rank, outputs, device = chosen.rank(name), layer_outputs(layer), weight_of(layer).device
        rows = layer_groups(layer) * rank if chosen.core else outputs
        layer.register_parameter(FACTOR, nn.Parameter(torch.zeros(rows, rank, device=device)))
        layer.register_buffer(BASIS, torch.zeros(basis_shape(layer, rank), device=device))
        if chosen.core:
            layer.register_buffer(OUTPUTS, torch.zeros(outputs, rank, device=device))
        layer.register_forward_hook(_moved)


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state as it leaves the package: of the model that the task built, on the CPU.

    Quantised weights become plain ones of their own dtype, and ``W₀ + R A`` (or ``W₀ + B C A``)
    stands in place of W₀, R and A.

    Parameters
    ----------
    state : mapping of str to Tensor
        A state dict, of whatever choice of parameters.
    """
    found = dequantised({name: value.cpu() for name, value in state.items()})
    for name in state:
        layer = name.removesuffix(FACTOR)
        basis, weight, outputs = f"{layer}{BASIS}", f"{layer}weight", f"{layer}{OUTPUTS}"
        if not name.endswith(FACTOR) or not {basis, weight} <= found.keys():
            continue  # a name of the model's own
        rows = found.pop(basis).double()
        change = in_groups(found.pop(name).double(), rows) @ rows
        if outputs in found:
            change = in_groups(found.pop(outputs).double(), rows) @ change
        if bool(change.any()):  # else it is W₀ to the bit
            own = found[weight]
            if rows.dim() > own.dim():  # one [in, out], see `basis_shape`
                change = change[0].t()
            found[weight] = (own.double() + change.reshape(own.shape)).to(own.dtype)
    return found


def movable_layers(client: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and layer of what can move so; attention's own projection is never called.

    A weight that two layers share, or that is computed of other parameters, stays: the plain model
    has no place for W₀ + R A of one layer.  Adapters stay too: they are such a product already.
    """
    weights = [module._parameters.get("weight") for module in client.modules()]
    owners = Counter(id(weight) for weight in weights if weight is not None)
    for name, layer in client.named_modules():
        if owners[id(layer._parameters.get("weight"))] != 1 or _in_adapter(name):
            continue
        if isinstance(layer, nn.Linear) and not isinstance(
            layer, nn.modules.linear.NonDynamicallyQuantizableLinear
        ):
            yield name, layer
        elif isinstance(layer, nn.Conv1d | nn.Conv2d) or is_transposed(layer):
            yield name, layer


def opened_layers(client: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and layer of what `open_subspace` opened."""
    return ((name, x) for name, x in movable_layers(client) if FACTOR in x._parameters)


def _in_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _stays(weight: Tensor) -> bool:
    """Tell whether a weight is kept as no training keeps it: quantised, or in half precision."""
    return is_quantised(weight) or weight.dtype in (torch.bfloat16, torch.float16)


def _check_rank(trained: str, chosen: Subspace, name: str, layer: nn.Module) -> None:
    """Refuse more directions than a layer's inputs, or outputs, have, those of a group."""
    sides = {"input": layer_width(layer)}
    if chosen.core:
        sides["output"] = layer_outputs(layer) // layer_groups(layer)
    side = min(sides, key=sides.__getitem__)
    if (rank := chosen.rank(name)) <= (most := sides[side]):
        return
    kind = "core" if chosen.core else "subspace"
    has = f"{most} {side}{'s' * (most > 1)}{' a group' * (layer_groups(layer) > 1)}"
    others = next(pattern for pattern, _ in chosen.ranks if fnmatchcase(name, pattern))
    rest = f",{others}={rank}" if others != name else ""
    raise ConfigError(
        f"trained is '{trained}', but the layer '{name}' has {has}; R must be in [1, {most}]; "
        f"give it a number of its own ({kind}:{name}={most}{rest}), or let a pattern leave it out "
        f"({kind}:R:PATTERN)."
    )


def _freeze(client: nn.Module, trained: str, chosen: Subspace, layers: Iterator[Any] | Any) -> None:
    """Leave open the biases of the layers, and the parameters that are named."""
    named = dict(client.named_parameters(remove_duplicate=False))
    for name in chosen.whole:
        if name not in named or not named[name].requires_grad:
            raise ConfigError(
                f"trained is '{trained}', but the client half trains no parameter '{name}'; name "
                "one of its own, or leave it out."
            )
    open_ = {id(named[name]) for name in chosen.whole}
    open_ |= {id(x.bias) for x in layers if x.bias is not None and x.bias.dtype == torch.float32}
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in open_ and parameter.requires_grad)


def _moved(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Add R (A x) to a layer's output, or B (C (A x)): no weight is written."""
    factor, basis = layer.get_parameter(FACTOR), layer.get_buffer(BASIS)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        kernels = basis.reshape(-1, *layer.weight.shape[1:])
        inside = layer._conv_forward(inputs[0], kernels.to(inputs[0].dtype), None)
    else:
        inside = functional.linear(inputs[0], basis.flatten(0, -2).to(inputs[0].dtype))
    for each in (factor, layer._buffers.get(OUTPUTS)):
        if each is None:
            continue
        each = each.to(inside.dtype)
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            apply = functional.conv1d if isinstance(layer, nn.Conv1d) else functional.conv2d
            one = each.reshape(*each.shape, *[1] * (layer.weight.ndim - 2))
            inside = apply(inside, one, groups=layer.groups)
        else:
            inside = functional.linear(inside, each)
    # Nobody else has the output yet; a graph would want it as it was.
    if not torch.is_grad_enabled() and output.dtype == inside.dtype:
        return output.add_(inside)
    moved: Tensor = output + inside
    return moved
