"""Layers of a client half that move in a few directions of what enters them.

A layer with weight W₀ moves as ``W₀ + R A`` with W₀ and A frozen: the r rows of A are the leading
directions of the layer's inputs (of the patches that a convolution sees), where nearly all of a
weight's gradient lies, for it is a sum of outer products with just these inputs.  R is an ordinary
trained parameter, zero at the start.  So zeroth order estimates a few hundred numbers in place of
thousands (AGZO, arXiv 2601.17261, takes the directions anew from each batch; the EVA initialisation
of peft trains A as well).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.errors import ConfigError
from sfl_flower.split.parameters.quantised import dequantised, is_quantised

__all__ = [
    "Subspace",
    "fit_subspace",
    "open_subspace",
    "plain_weights",
    "read_subspace",
]

FACTOR, BASIS = "subspace", "subspace_basis"
"""Names of R, shape [out, r], and of A, shape [r, in], beside a layer's weight."""
_AT_ONCE = 16
"""Samples of a forward while inputs are looked at."""
_NOTHING = 1e-10
"""Share of the largest eigenvalue below which a direction is rounding."""
_FORM = re.compile(r"subspace:([1-9][0-9]{0,4})(?::(.+))?")


@dataclass(frozen=True)
class Subspace:
    """What ``trained="subspace:R"`` or ``"subspace:R:PATTERN"`` asks for.

    Attributes
    ----------
    rank : int
        r, directions of each layer.
    pattern : str
        Which layers, by name, as ``fnmatch`` reads it.
    """

    rank: int
    pattern: str = "*"


def read_subspace(trained: str) -> Subspace | None:
    """Return the subspace that a choice of parameters names, None where it names none.

    Raises
    ------
    ConfigError
        It begins with ``subspace`` and is not ``subspace:R`` or ``subspace:R:PATTERN``.
    """
    if not trained.startswith("subspace"):
        return None
    form = _FORM.fullmatch(trained)
    if form is None:
        raise ConfigError(
            f"trained is '{trained}'; a subspace is subspace:R, with R directions a layer from 1, "
            "as in subspace:4, or subspace:R:PATTERN for layers whose names match."
        )
    return Subspace(int(form[1]), form[2] or "*")


def open_subspace(client: nn.Module, trained: str) -> None:
    """Freeze a client half but for R and the bias of each chosen layer, in place.

    A is zero until `fit_subspace`, or weights that are loaded, say what it is.

    Parameters
    ----------
    client : nn.Module
        The client half.
    trained : str
        ``subspace:R`` or ``subspace:R:PATTERN``.

    Raises
    ------
    ConfigError
        No layer can move so, or one has fewer inputs than directions are asked for.
    """
    chosen = read_subspace(trained)
    assert chosen is not None
    layers = {
        name: layer
        for name, layer in _layers(client)
        if fnmatchcase(name, chosen.pattern)
        and (layer.weight.requires_grad or is_quantised(layer.weight))
    }
    if not layers:
        names = ", ".join(name for name, _ in _layers(client)) or "none"
        raise ConfigError(
            f"trained is '{trained}' and chooses no layer of the client half by "
            f"'{chosen.pattern}': linear layers and convolutions without groups that the model "
            f"trains, with a weight of their own, can move so ({names}); name one of them, or use "
            "another choice of parameters."
        )
    for name, layer in layers.items():
        if chosen.rank > (width := _width(layer)):
            raise ConfigError(
                f"trained is '{trained}', but the layer '{name}' has {width} inputs; "
                f"R must be in [1, {width}], or a pattern leave the layer out (subspace:R:PATTERN)."
            )
    biases = {id(layer.bias) for layer in layers.values()}
    for parameter in client.parameters():
        parameter.requires_grad_(id(parameter) in biases and parameter.requires_grad)
    for layer in layers.values():
        weight = layer.weight
        factor = torch.zeros(len(weight), chosen.rank, device=weight.device)
        layer.register_parameter(FACTOR, nn.Parameter(factor))
        layer.register_buffer(BASIS, torch.zeros(chosen.rank, _width(layer), device=weight.device))
        layer.register_forward_hook(_moved)


def fit_subspace(client: nn.Module, x: Tensor) -> None:
    """Set A of each opened layer to the leading directions of its inputs on some samples.

    The directions are orthogonal; each is scaled so that what it takes of the inputs has a mean
    square of 1, so one learning rate serves all layers.

    Parameters
    ----------
    client : nn.Module
        The client half, opened by `open_subspace`.
    x : Tensor
        Inputs [n, ...], without labels.

    Raises
    ------
    ConfigError
        The samples span fewer directions than are asked for, or the half calls none of the layers.
    """
    moments = _moments(client, x)
    if not moments:
        names = ", ".join(name for name, _ in _opened(client))
        raise ConfigError(
            f"trained chooses layers that the client half never calls ({names}), it reads their "
            "weights; call them in forward(), or use another choice of parameters."
        )
    for name, layer in _opened(client):
        if name not in moments:
            continue  # a layer that the forward does not call stays as it is
        basis = layer.get_buffer(BASIS)
        values, vectors = torch.linalg.eigh(moments[name])  # ascending
        there = int((values > _NOTHING * values[-1]).sum())
        if there < len(basis):
            raise ConfigError(
                f"trained asks for {len(basis)} directions of the layer '{name}', but its inputs "
                f"on the samples given span {there}; ask for fewer, or give more samples."
            )
        values, vectors = values[-len(basis) :].flip(0), vectors[:, -len(basis) :].flip(1)
        # The sign of an eigenvector is the library's; here its largest element is positive.
        largest = vectors.abs().argmax(dim=0, keepdim=True)
        vectors = vectors * vectors.gather(0, largest).sign()
        basis.copy_((vectors / values.sqrt()).t())


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state as it leaves the package: of the model that the task built, on the CPU.

    Quantised weights become plain ones of their own dtype, and ``W₀ + R A`` stands in place of W₀,
    R and A.

    Parameters
    ----------
    state : mapping of str to Tensor
        A state dict, of whatever choice of parameters.
    """
    found = dequantised({name: value.cpu() for name, value in state.items()})
    for name in state:
        layer = name.removesuffix(FACTOR)
        basis, weight = f"{layer}{BASIS}", f"{layer}weight"
        if not name.endswith(FACTOR) or not {basis, weight} <= found.keys():
            continue  # a name of the model's own
        change = found.pop(name).double() @ found.pop(basis).double()
        if bool(change.any()):  # else it is W₀ to the bit
            own = found[weight]
            found[weight] = (own.double() + change.reshape(own.shape)).to(own.dtype)
    return found


def _layers(client: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Yield name and layer of what can move so; attention's own projection is never called.

    A weight that two layers share, or that is computed of other parameters, stays: the plain model
    has no place for W₀ + R A of one layer.
    """
    weights = [module._parameters.get("weight") for module in client.modules()]
    owners = Counter(id(weight) for weight in weights if weight is not None)
    for name, layer in client.named_modules():
        if owners[id(layer._parameters.get("weight"))] != 1:
            continue
        if isinstance(layer, nn.Linear) and not isinstance(
            layer, nn.modules.linear.NonDynamicallyQuantizableLinear
        ):
            yield name, layer
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
            yield name, layer


def _opened(client: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    return ((name, layer) for name, layer in _layers(client) if FACTOR in layer._parameters)


def _width(layer: nn.Linear | nn.Conv2d) -> int:
    return math.prod(layer.weight.shape[1:])


def _moved(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Add R (A x) to a layer's output: no weight is written."""
    factor, basis = layer.get_parameter(FACTOR), layer.get_buffer(BASIS)
    if isinstance(layer, nn.Conv2d):
        kernels = basis.reshape(len(basis), *layer.weight.shape[1:])
        inside = layer._conv_forward(inputs[0], kernels.to(inputs[0].dtype), None)
        return output + functional.conv2d(inside, factor[:, :, None, None].to(inside.dtype))
    inside = functional.linear(inputs[0], basis.to(inputs[0].dtype))
    return output + functional.linear(inside, factor.to(inside.dtype))


def _moments(client: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the mean outer product of each opened layer's inputs with themselves, float64."""
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with _watched(client, found, counts), torch.no_grad():
        for part in x.split(_AT_ONCE):
            client(part)
    return {name: total / counts[name] for name, total in found.items()}


@contextmanager
def _watched(client: nn.Module, found: dict[str, Tensor], counts: dict[str, int]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = _rows(layer, inputs[0]).double()
            found[name] = found.get(name, 0) + rows.t() @ rows
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in _opened(client)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what meets the rows of a layer's weight: inputs, or patches; shape [n, in]."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        pad, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
        x = functional.pad(x, pad, mode="constant" if mode == "zeros" else mode)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = layer.padding
    patches = functional.unfold(
        x, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
    )
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])
