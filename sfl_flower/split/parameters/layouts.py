"""How layers of each kind keep their weights: as matrices of what enters and leaves them.

A linear layer and a convolution without groups are one matrix [out, in]; a convolution's inputs are
the numbers of a patch.  A grouped convolution is a matrix [out / g, in / g] for each of its g
groups, and transformers' ``Conv1D`` keeps its matrix transposed, [in, out].
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "basis_shape",
    "in_groups",
    "input_rows",
    "is_transposed",
    "layer_groups",
    "layer_outputs",
    "layer_width",
    "weight_matrices",
    "weight_of",
]


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return a layer's weight as it keeps it."""
    return layer.get_parameter("weight")


def is_transposed(layer: nn.Module) -> bool:
    """Tell whether a layer is transformers' ``Conv1D``, which keeps its weight as [in, out].

    By its name, for the library may not be installed.
    """
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"
        for kind in type(layer).__mro__
    )


def layer_groups(layer: nn.Module) -> int:
    """Return how many groups a convolution has; 1 of another layer."""
    return layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1


def layer_outputs(layer: nn.Module) -> int:
    """Return the outputs of a layer, those of all its groups."""
    return weight_of(layer).shape[1 if is_transposed(layer) else 0]


def layer_width(layer: nn.Module) -> int:
    """Return what meets a row of a layer's weight: inputs of a group, or the numbers of a patch."""
    shape = weight_of(layer).shape
    return shape[0] if is_transposed(layer) else math.prod(shape[1:])


def weight_matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight, or a gradient of it, as what meets the inputs: a view.

    Parameters
    ----------
    layer : nn.Module
        Whose it is.
    weight : Tensor
        As the layer keeps it.

    Returns
    -------
    Tensor
        Shape [out, in], or [groups, out / groups, in] with the inputs of a group.
    """
    if is_transposed(layer):
        return weight.t()
    rows, groups = weight.flatten(1), layer_groups(layer)
    return rows if groups == 1 else rows.unflatten(0, (groups, -1))


def basis_shape(layer: nn.Module, rank: int) -> tuple[int, ...]:
    """Return the shape of a layer's A of `rank` directions.

    [r, in]; [groups, r, in] of a grouped convolution, with the inputs of a group; [1, r, in] where
    the weight is [in, out].  So the shapes of W and A tell the layout, also where W is square.
    """
    groups, one = layer_groups(layer), (rank, layer_width(layer))
    return (groups, *one) if groups > 1 or is_transposed(layer) else one


def in_groups(rows: Tensor, basis: Tensor) -> Tensor:
    """Return R, C or B, shape [n, r], as what stands beside a layer's A: [groups, n / groups, r].

    As it is where A has no groups.
    """
    return rows if basis.dim() == 2 else rows.unflatten(0, (len(basis), -1))


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what meets the rows of a layer's weight: inputs, or patches.

    Parameters
    ----------
    layer : nn.Module
        The layer.
    x : Tensor
        What enters it.

    Returns
    -------
    Tensor
        Shape [n, in], or [groups, n, in] with the inputs of a group.
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        pad, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
        x = functional.pad(x, pad, mode="constant" if mode == "zeros" else mode)
        padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    else:
        padding = layer.padding
    one = isinstance(layer, nn.Conv1d)
    patches = functional.unfold(
        x.unsqueeze(-2) if one else x,  # a row of one is an image of one row
        (1, *layer.kernel_size) if one else layer.kernel_size,
        dilation=(1, *layer.dilation) if one else layer.dilation,
        padding=(0, *padding) if one else padding,
        stride=(1, *layer.stride) if one else layer.stride,
    )
    if layer.groups == 1:
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    # A patch holds one channel after another, so those of a group lie side by side.
    parts: Tensor = patches.unflatten(1, (layer.groups, -1))  # [n, groups, in, positions]
    return parts.permute(1, 0, 3, 2).flatten(1, 2)
