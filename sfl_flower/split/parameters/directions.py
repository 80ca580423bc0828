"""The directions in which opened layers of a client half move: of what enters them on samples.

Where labels are given, of what a weight's gradients are made of: the leading eigenvectors of
Σ Gᵀ G over the gradients G of the samples one by one, where inputs without influence, such as the
padding of texts, do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.split.parameters.layouts import (
    in_groups,
    input_rows,
    layer_groups,
    layer_width,
    weight_matrices,
)
from sfl_flower.split.parameters.quantised import is_quantised
from sfl_flower.split.parameters.subspace import BASIS, OUTPUTS, movable_layers, opened_layers

__all__ = [
    "NOTHING",
    "GradientMoments",
    "fit_subspace",
    "gradient_moments",
    "input_moments",
    "leading",
    "plain_gradients",
    "set_directions",
    "sketch_moments",
    "sketched_moments",
    "with_gradients",
]

SPARE = 8
"""Columns of a sketch beyond the directions that are asked for."""
Draw = Callable[[str, int, int], Any]
"""Gives for a layer's name a random array [width, columns]."""
_ROUNDING = 1e-6
"""Share of the largest eigenvalue of a sketch, in float32, below which it is rounding."""
_AT_ONCE = 16
"""Samples of a forward while inputs are looked at."""
NOTHING = 1e-10
"""Share of the largest eigenvalue below which a direction is rounding."""


@dataclass
class GradientMoments:
    """What the gradients of samples are made of, summed over them.

    Attributes
    ----------
    energy : dict of str to float
        Σ ‖G‖² of each parameter.
    inputs, outputs : dict of str to Tensor
        Σ Gᵀ G, shape [in, in], and Σ G Gᵀ, shape [out, out], of the weight of each layer that can
        move, float64; of a grouped convolution with a first dimension of the groups, each of its
        own weight.
    """

    energy: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def of(self, names: Collection[str]) -> GradientMoments:
        """Return those of these parameters alone."""
        layers = {name.rpartition(".")[0] for name in names if name.endswith(".weight")}
        return GradientMoments(
            {name: value for name, value in self.energy.items() if name in names},
            {name: value for name, value in self.inputs.items() if name in layers},
            {name: value for name, value in self.outputs.items() if name in layers},
        )


def with_gradients(client: nn.Module) -> nn.Module:
    """Let every weight of a client half have a gradient, in place; quantised ones become plain."""
    for module in client.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and is_quantised(value):
                module.register_parameter(name, nn.Parameter(value.detach().dequantize()))
    for parameter in client.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return client


def plain_gradients(halves: Iterable[nn.Module], loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss by each weight of the model itself, adapters left out.

    Parameters
    ----------
    halves : iterable of nn.Module
        The client half, or both, as `with_gradients` makes them.
    loss : Tensor
        Shape [], computed through them.
    """
    named = {
        name: parameter
        for half in halves
        for name, parameter in half.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    # Any: torch's types do not know that what is not used has none.
    found: Any = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def gradient_moments(client: nn.Module, losses: Iterable[Tensor]) -> GradientMoments:
    """Sum what gradients are made of.

    Parameters
    ----------
    client : nn.Module
        The client half, as `with_gradients` makes it.
    losses : iterable of Tensor
        The loss of each sample, shape [], computed through the half.
    """
    moments = GradientMoments()
    layers = {f"{name}.weight": (name, layer) for name, layer in movable_layers(client)}
    for loss in losses:
        for name, gradient in plain_gradients([client], loss).items():
            energy = float(gradient.double().square().sum())
            moments.energy[name] = moments.energy.get(name, 0.0) + energy
            if name in layers:
                own, layer = layers[name]
                rows = weight_matrices(layer, gradient)
                moments.inputs[own] = moments.inputs.get(own, 0) + (rows.mT @ rows).double()
                moments.outputs[own] = moments.outputs.get(own, 0) + (rows @ rows.mT).double()
    return moments


def fit_subspace(client: nn.Module, x: Tensor, gradients: GradientMoments | None = None) -> None:
    """Set the directions of each opened layer to the leading ones on some samples.

    Parameters
    ----------
    client : nn.Module
        The client half, opened by `open_subspace`.
    x : Tensor
        Inputs [n, ...].
    gradients : GradientMoments, optional
        What the gradients on these samples are made of; see `set_directions`.

    Raises
    ------
    ConfigError
        The samples span fewer directions than are asked for, or the half calls none of the layers.
    """
    set_directions(client, input_moments(client, x), gradients)


def set_directions(
    client: nn.Module, moments: Mapping[str, Tensor], gradients: GradientMoments | None = None
) -> None:
    """Set the directions of each opened layer by what enters it.

    The rows of A are orthogonal; each is scaled so that what it takes of the inputs has a mean
    square of 1, so one learning rate serves all layers.  The columns of B are orthonormal, so an
    element of C moves the outputs as far as an element of R does.  A group of a convolution has
    its own; where it has fewer than are asked for, such as none behind a ReLU that is always off,
    the rest of its rows are 0.

    Parameters
    ----------
    client : nn.Module
        The client half, opened by `open_subspace`.
    moments : mapping of str to Tensor
        The mean outer product of each layer's inputs with themselves, float64, shape [in, in], or
        [groups, in, in].
    gradients : GradientMoments, optional
        Where given, the directions are those of the gradients; B needs them.

    Raises
    ------
    ConfigError
        There are fewer directions than are asked for, or no layer has inputs.
    """
    if not moments:
        names = ", ".join(name for name, _ in opened_layers(client))
        raise ConfigError(
            f"trained chooses layers that the client half never calls ({names}), it reads their "
            "weights; call them in forward(), or use another choice of parameters."
        )
    for name, layer in opened_layers(client):
        if name not in moments:
            continue  # a layer that the forward does not call stays as it is
        basis, outputs = layer.get_buffer(BASIS), layer._buffers.get(OUTPUTS)
        source = moments[name] if gradients is None else gradients.inputs[name]
        values, vectors = leading(source, basis.shape[-2], name, "inputs")
        if gradients is not None:  # the eigenvalues are those of gradients
            values = ((moments[name] @ vectors) * vectors).sum(dim=-2)
        lengths = values.sqrt().where(vectors.any(dim=-2), 1.0)
        basis.copy_((vectors / lengths.unsqueeze(-2)).mT)
        if outputs is not None:
            assert gradients is not None
            found = leading(gradients.outputs[name], basis.shape[-2], name, "output gradients")
            in_groups(outputs, basis).copy_(found[1])


def leading(moment: Tensor, rank: int, name: str, what: str) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of a symmetric matrix, shape [r], and vectors, [n, r].

    Of several, shape [groups, n, n], each has its own: [groups, r] and [groups, n, r].  A vector
    whose value is rounding beside the largest of all is 0.

    Raises
    ------
    ConfigError
        None has `rank` that are not rounding.
    """
    values, vectors = torch.linalg.eigh(moment)  # ascending
    there = values > NOTHING * values.max()
    if (most := int(there.sum(dim=-1).max())) < rank:
        raise ConfigError(
            f"trained asks for {rank} directions of the layer '{name}', but its {what} "
            f"on the samples given span {most}{' in no group more' * (moment.dim() > 2)}; ask for "
            "fewer, or give more samples."
        )
    values, vectors = values[..., -rank:].flip(-1), vectors[..., -rank:].flip(-1)
    # The sign of an eigenvector is the library's; here its largest element is positive.
    largest = vectors.abs().argmax(dim=-2, keepdim=True)
    vectors = vectors * vectors.gather(-2, largest).sign()
    return values, vectors * there[..., -rank:].flip(-1).unsqueeze(-2)


def input_moments(client: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the mean outer product of each opened layer's inputs with themselves, float64.

    Shape [in, in]; [groups, in, in] of a grouped convolution.
    """
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with _watched(client, found, counts), torch.no_grad():
        for part in x.split(_AT_ONCE):
            client(part)
    return {name: total / counts[name] for name, total in found.items()}


def sketch_moments(client: nn.Module, moments: Mapping[str, Tensor], draw: Draw) -> Tensor:
    """Return M Ω of each opened layer, one after another: float32, shape [n].

    M is the layer's moment and Ω random, of `SPARE` more columns than the layer has directions, so
    that sketches add up and tell the leading directions of their sum, and little else.

    Parameters
    ----------
    client : nn.Module
        The client half, opened.
    moments : mapping of str to Tensor
        `input_moments`; a layer that is never called has none.
    draw : callable
        Gives Ω for a layer's name, its width and the columns.
    """
    found = [torch.zeros(0, dtype=torch.float64)]
    for name, layer in opened_layers(client):
        _, width, columns = _sketched(layer)
        moment = moments.get(name)
        if moment is None:
            moment = torch.zeros(layer_groups(layer), width, width, dtype=torch.float64)
        found.append((moment @ torch.from_numpy(draw(name, width, columns))).flatten())
    return torch.cat(found).float()


def sketched_moments(client: nn.Module, sketch: Tensor, draw: Draw) -> dict[str, Tensor]:
    """Return the moments of which a sketch is, as far as it tells them, float64.

    Parameters
    ----------
    client : nn.Module
        The client half, opened.
    sketch : Tensor
        A mean of `sketch_moments`, float64, shape [n].
    draw : callable
        As it was.

    Raises
    ------
    ConfigError
        It has another size.
    """
    found: dict[str, Tensor] = {}
    sizes = {name: _sketched(layer) for name, layer in opened_layers(client)}
    if (wanted := sum(map(math.prod, sizes.values()))) != len(sketch):
        raise ConfigError(
            f"A sketch of what enters layers has {len(sketch)} numbers, expected {wanted}."
        )
    for name, size in sizes.items():
        part, sketch = sketch[: math.prod(size)].reshape(size), sketch[math.prod(size) :]
        if not bool(part.any()):
            continue
        drawn = torch.from_numpy(draw(name, *size[1:]))
        moments = [_nystrom(each, drawn) for each in part]
        found[name] = moments[0] if len(moments) == 1 else torch.stack(moments)
    return found


def _nystrom(part: Tensor, drawn: Tensor) -> Tensor:
    """Return M of M Ω: about (MΩ) (Ωᵀ M Ω)⁺ (MΩ)ᵀ, exactly where its rank is at most columns."""
    core = drawn.t() @ part
    values, vectors = torch.linalg.eigh((core + core.t()) / 2)
    there = values > _ROUNDING * values[-1]
    root: Tensor = part @ vectors[:, there] / values[there].sqrt()
    return root @ root.t()


def _sketched(layer: nn.Module) -> tuple[int, int, int]:
    """Return groups, width and columns of a layer's sketch."""
    width = layer_width(layer)
    return layer_groups(layer), width, min(width, layer.get_buffer(BASIS).shape[-2] + SPARE)


@contextmanager
def _watched(client: nn.Module, found: dict[str, Tensor], counts: dict[str, int]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = input_rows(layer, inputs[0]).double()
            found[name] = found.get(name, 0) + rows.mT @ rows
            counts[name] = counts.get(name, 0) + rows.shape[-2]

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in opened_layers(client)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
