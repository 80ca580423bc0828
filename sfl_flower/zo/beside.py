"""Several probes in one forward: rank-one directions beside the products of the layers.

A layer of weight W meets W + μ a bᵀ in a probe.  Its product is W x + μ a (bᵀ x): that of W, which
all probes share, and that of two vectors (EGGROLL's way, arXiv 2511.16652).  So P probes run as one
forward of P times the samples, and no perturbed weight is ever written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.zo.directions import Direction
from sfl_flower.zo.law import DeviceFactors
from sfl_flower.zo.vector import ParameterVector

__all__ = ["Beside"]

_BASIS, _OUTPUTS = "_basis", "_outputs"
"""A parameter N [out, r] beside a buffer N_basis [r, in] moves a weight by N N_basis.

One of shape [r, r] with N_outputs [out, r] as well moves it by N_outputs N N_basis.  In a grouped
convolution N_basis is [groups, r, in / groups], and each group has its part of the rows of N and
N_outputs; beside a weight [in, out] it is [1, r, in].
"""
_TRANSPOSED = "Conv1D"
"""Class of transformers' layers with such a weight."""
_TOLERANCE = 1e-3
"""Difference between outputs, relative to the largest, above which samples were mixed."""

Signs = list[DeviceFactors]
"""Factors over one tensor, of each probe."""


@dataclass(frozen=True)
class _Owned:
    """A layer, and where its trained tensors stand in the vector, by their names in the layer."""

    layer: nn.Module
    tensors: Mapping[str, int]


class Beside:
    """The layers of a module that holds trained parameters, probed beside their products.

    Parameters
    ----------
    layers : sequence
        From `open`.
    """

    def __init__(self, layers: Sequence[_Owned]) -> None:
        self._layers = layers

    @classmethod
    def open(
        cls,
        module: nn.Module,
        vector: ParameterVector,
        run: Callable[[Tensor], Tensor],
        x: Tensor,
    ) -> Beside | None:
        """Return how a module is probed so; None where it must be by writing weights.

        That is where a trained parameter is not the weight or bias of a linear layer, convolution,
        embedding or norm, or belongs to two of them, or where samples of a batch are mixed:
        BatchNorm in train mode, dropout, or code that knows the size of its batch.

        Parameters
        ----------
        module : nn.Module
            What runs.
        vector : ParameterVector
            Its trained parameters.
        run : callable
            Runs it on a mini-batch; it is tried on one, and on one beside another.
        x : Tensor
            A mini-batch, shape [n, ...].
        """
        owned = _owned(module, vector)
        if owned is None or any(_draws(layer) for layer in module.modules()):
            return None
        with torch.no_grad():
            alone = run(x)
            try:
                both = run(torch.cat([x, torch.zeros_like(x)]))
            except (RuntimeError, ValueError, IndexError):
                return None
        if both.shape != (2 * len(alone), *alone.shape[1:]):
            return None
        apart = float((both[: len(alone)] - alone).abs().max())
        return cls(owned) if apart <= _TOLERANCE * float(alone.abs().max()) else None

    @contextmanager
    def probes(self, directions: Sequence[Direction], scale: float) -> Iterator[None]:
        """Inside, the p-th part of a batch meets the parameters ``anchor + scale * u_p``.

        Parameters
        ----------
        directions : sequence of Direction
            P of a law with factors; a batch has P equal parts.
        scale : float
            μ.
        """
        hooks = []
        try:
            for owned in self._layers:
                device = next(owned.layer.parameters()).device
                factors = [direction.factors_on(device) or () for direction in directions]
                signs = {
                    name: [parts[at] for parts in factors] for name, at in owned.tensors.items()
                }
                hooks.append(owned.layer.register_forward_hook(_Moved(signs, scale)))
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Moved:
    """A forward hook that adds what the directions change of a layer's output."""

    def __init__(self, signs: Mapping[str, Signs], scale: float) -> None:
        self._signs, self._scale = signs, scale

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x, out = inputs[0], output.unflatten(0, (self.probes, -1))  # a view: added to in place
        if isinstance(layer, _NORMS):
            out.add_(self._norm(layer, x), alpha=self._scale)
            return output
        for name, signs in self._signs.items():
            columns = _columns(signs, out)
            if name == "bias":
                out.add_(_spread(columns, out, layer), alpha=self._scale)
                continue
            rows = _rows(signs, out)
            if isinstance(layer, nn.Embedding):
                inner = rows.gather(1, x.reshape(self.probes, -1)).reshape(*out.shape[:-1], 1)
                out.addcmul_(inner, _spread(columns, out, layer), value=self._scale)
                continue
            if name != "weight":  # R of R A, or C of B C A: a and b are seen through B and A
                basis = layer.get_buffer(name + _BASIS).to(columns.dtype)
                columns = (columns @ basis).movedim(-2, 0)  # [P, in], or [P, groups, in / groups]
                if (outputs := layer._buffers.get(name + _OUTPUTS)) is not None:
                    rows = _outputs(rows, outputs.to(rows.dtype), basis)
            inner = _inner(layer, x, columns, self.probes)
            out.addcmul_(inner, _spread(rows, out, layer), value=self._scale)
        return output

    @property
    def probes(self) -> int:
        """P."""
        return len(next(iter(self._signs.values())))

    def _norm(self, layer: nn.Module, x: Tensor) -> Tensor:
        found = _normalised(layer, x).unflatten(0, (self.probes, -1))
        total = torch.zeros_like(found)
        for name, signs in self._signs.items():
            moved = _spread(_full(signs, layer.get_parameter(name), found), found, layer)
            total.add_(moved * found if name == "weight" else moved)
        return total


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OF_CHANNELS = (*_CONVOLUTIONS, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_KNOWN = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, *_NORMS)
_PLAIN_CALL = (nn.modules.linear.NonDynamicallyQuantizableLinear,)
"""Linear layers whose weights somebody else reads."""


def _owned(module: nn.Module, vector: ParameterVector) -> list[_Owned] | None:
    """Return the layers of the trained parameters; None where one is of another kind."""
    at = {id(parameter): number for number, parameter in enumerate(vector.parameters)}
    found, seen = [], Counter[int]()
    for layer in module.modules():
        own = {name: at[id(p)] for name, p in layer._parameters.items() if id(p) in at}
        if not own:
            continue
        seen.update(own.values())
        if not _can(layer, own):
            return None
        found.append(_Owned(layer, own))
    complete = set(seen) == set(at.values()) and all(count == 1 for count in seen.values())
    return found if complete else None


def _draws(layer: nn.Module) -> bool:
    """Tell whether a layer is one of dropout that is active."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0


def _can(layer: nn.Module, names: Mapping[str, int]) -> bool:
    """Tell whether a layer of these trained parameters can be probed beside its product."""
    buffers = {name for name, _ in layer.named_buffers(recurse=False)}
    moves = {name for name in names if name + _BASIS in buffers}
    if type(layer).__name__ == _TRANSPOSED:
        return bool(moves) and names.keys() <= {"bias", *moves}
    if not isinstance(layer, _KNOWN) or isinstance(layer, _PLAIN_CALL):
        return False
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return False
    if isinstance(layer, _CONVOLUTIONS) and layer.padding_mode != "zeros":
        return False
    own = moves if isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) else set()
    return names.keys() <= {"weight", "bias", *own}


def _columns(signs: Signs, like: Tensor) -> Tensor:
    """Return b of each probe, shape [P, n], where a tensor is."""
    return torch.stack([part.columns for part in signs]).to(like)


def _rows(signs: Signs, like: Tensor) -> Tensor:
    """Return a of each probe, shape [P, m], where a tensor is."""
    return torch.stack([part.rows for part in signs if part.rows is not None]).to(like)


def _full(signs: Signs, parameter: Tensor, like: Tensor) -> Tensor:
    """Return the signs themselves, shape [P, ...]."""
    columns = _columns(signs, like)
    if signs[0].rows is not None:
        columns = _rows(signs, like)[:, :, None] * columns[:, None]
    return columns.reshape(len(signs), *parameter.shape)


def _spread(values: Tensor, out: Tensor, layer: nn.Module) -> Tensor:
    """Give numbers of channels or features, shape [P, ...], the dimensions of an output."""
    probes, last = len(values), out.dim() - values.dim()
    if isinstance(layer, _OF_CHANNELS):
        return values.reshape(probes, 1, -1, *(1,) * (out.dim() - 3))
    return values.reshape(probes, *(1,) * last, *values.shape[1:])


def _inner(layer: nn.Module, x: Tensor, columns: Tensor, probes: int) -> Tensor:
    """Return bᵀ x of each probe: at each position, with one channel or one a group."""
    if not isinstance(layer, _CONVOLUTIONS):
        part = x.reshape(probes, -1, x.shape[-1])
        products = torch.bmm(part, columns.reshape(probes, -1, 1))
        return products.reshape(probes, -1, *x.shape[1:-1], 1)
    run: Callable[..., Tensor] = {3: functional.conv1d, 4: functional.conv2d}.get(
        x.dim(), functional.conv3d
    )
    groups, kernel = layer.groups, layer.weight.shape[1:]
    settings = (layer.stride, layer.padding, layer.dilation)
    found: list[Tensor] = []
    for part, filters in zip(x.chunk(probes), columns, strict=True):
        if filters.dim() > 1:  # each group has a filter of its own
            inner = run(part, filters.reshape(-1, *kernel), None, *settings, groups)
        else:
            split = part.reshape(-1, kernel[0], *part.shape[2:])  # a group is a sample of its own
            inner = run(split, filters.reshape(1, *kernel), None, *settings)
            inner = inner.reshape(len(part), groups, *inner.shape[2:])
        found.append(
            inner.repeat_interleave(len(layer.weight) // groups, 1) if groups > 1 else inner
        )
    return torch.stack(found)


def _outputs(rows: Tensor, outputs: Tensor, basis: Tensor) -> Tensor:
    """Return B a of each probe, group by group where A has groups; shape [P, out]."""
    if basis.dim() == 2:
        return rows @ outputs.t()
    groups = len(basis)
    found: Tensor = outputs.unflatten(0, (groups, -1)) @ rows.unflatten(1, (groups, -1, 1))
    return found.flatten(1)


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a norm's input as it is before scale and shift."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, None, None, layer.eps)
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    return functional.batch_norm(
        x,
        layer.running_mean,
        layer.running_var,
        None,
        None,
        layer.running_mean is None,
        0.0,
        layer.eps,
    )
