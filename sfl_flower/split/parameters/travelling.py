"""What of a model travels, and what every process builds for itself.

Trained parameters and buffers travel: they are sent, averaged and kept. Frozen parameters, and the
statistics of BatchNorm that `freeze_batch_norm` froze, never change; each side has them from the
task's own model, and a digest tells whether both have the same. The directions of subspaces never
change either, but the server computes them: they are carried to each client once.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor, nn

from sfl_flower.errors import TrainingError
from sfl_flower.split.parameters.batch_norm import is_frozen_norm
from sfl_flower.split.parameters.quantised import parts

__all__ = [
    "BASIS",
    "FACTOR",
    "OUTPUTS",
    "base_digest",
    "base_state",
    "buffers_of",
    "carried_state",
    "load_carried",
    "load_travelling",
    "travelling_state",
]

FACTOR, BASIS, OUTPUTS = "subspace", "subspace_basis", "subspace_outputs"
"""Names beside a layer's weight: of R, shape [out, r], or C, shape [r, r]; of A, shape [r, in]; and
of B, shape [out, r], under ``core``.  A grouped convolution has a C and an A a group: shapes
[groups * r, r] and [groups, r, in / groups]; see `basis_shape` for a weight of [in, out]."""


def travelling_state(module: nn.Module) -> dict[str, Tensor]:
    """Return what of a module travels, by name: views of trained parameters and of buffers.

    A parameter with several names (tied weights) is there once, under the first of them.
    """
    once = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    never = _every_parameter(module).keys() | _constants(module) | _directions(module)
    return {k: v for k, v in module.state_dict().items() if k in once or k not in never}


def base_state(*modules: nn.Module) -> dict[str, Tensor]:
    """Return what of the modules never changes, by name: views of frozen parameters and norms."""
    found: dict[str, Tensor] = {}
    for module in modules:
        parameters = _every_parameter(module)
        frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        frozen |= _constants(module)
        found |= {k: v for k, v in module.state_dict().items() if k in frozen}
    return found


def carried_state(module: nn.Module) -> dict[str, Tensor]:
    """Return what the server computes once and no step changes, by name: views of directions."""
    carried = _directions(module)
    return {k: v for k, v in module.state_dict().items() if k in carried}


def buffers_of(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state of the module that are no parameters."""
    parameters = _every_parameter(module)
    return {name: value for name, value in state.items() if name not in parameters}


def load_travelling(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy values into what of a module travels; other names of the state are passed over.

    Raises
    ------
    TrainingError
        If a tensor is missing or has another shape.
    """
    _load(travelling_state(module), state)


def load_carried(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy values into `carried_state` of a module; other names of the state are passed over.

    Raises
    ------
    TrainingError
        If a tensor is missing or has another shape.
    """
    _load(carried_state(module), state)


def _load(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            shape = f"has shape {list(state[name].shape)}" if name in state else "is missing"
            raise TrainingError(
                f"The weights belong to another model: '{name}' {shape}, here it has shape "
                f"{list(value.shape)}."
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def base_digest(*modules: nn.Module) -> str:
    """Return the digest of names, dtypes, shapes and bits of `base_state`; "" where it is empty.

    One module after another: a half and an auxiliary head may have names in common. Of a quantised
    weight it is the digest of the tensors it is made of.
    """
    digest, found = blake2b(digest_size=16), False
    for number, module in enumerate(modules):
        state = base_state(module)
        found |= bool(state)
        digest.update(f"{number} {len(state)}\n".encode())
        for name in sorted(state):
            for part, tensor in parts(name, state[name]):
                value = tensor.detach().cpu()
                digest.update(f"{part} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if found else ""


def _every_parameter(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(remove_duplicate=False))


def _constants(module: nn.Module) -> set[str]:
    """Return the names of the buffers of frozen BatchNorm."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules(remove_duplicate=False)
        if is_frozen_norm(part)
        for name, _ in part.named_buffers(recurse=False)
    }


def _directions(module: nn.Module) -> set[str]:
    """Return the names of the directions of layers that move in subspaces."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules(remove_duplicate=False)
        if FACTOR in part._parameters
        for name in (BASIS, OUTPUTS)
        if name in part._buffers
    }
