"""Quantised weights: frozen tensors that are made of others, such as int8 numbers and scales.

A library such as torchao keeps one as a subclass of ``torch.Tensor`` that says it is float32, does
what a layer asks of it, and refuses most else: it has no bits, no bytes and no equality of its own.
Here is what the package asks of its weights, for these as for plain ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, TrainingError

__all__ = ["dequantised", "held_bytes", "is_quantised", "load_dequantised", "parts", "stay_frozen"]


def is_quantised(value: Tensor) -> bool:
    """Tell whether a tensor is made of others."""
    return hasattr(type(value), "__tensor_flatten__")


def parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that a weight is made of, under names that begin with its own.

    A plain one is made of itself: ``("fc.weight", value)``. An int8 one of torchao gives
    ``fc.weight.qdata``, ``fc.weight.scale`` and ``fc.weight.zero_point``.
    """
    if not is_quantised(value):
        yield name, value
        return
    inside, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
    for part in inside:
        yield from parts(f"{name}.{part}", getattr(value, part))


def held_bytes(values: Iterable[Tensor]) -> int:
    """Return the bytes in memory of tensors; ``nbytes`` of a quantised one is that of float32."""
    return sum(part.nbytes for value in values for _, part in parts("", value))


def dequantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with a plain tensor of its own dtype for each quantised weight.

    This is what leaves the package as the whole model: `model.safetensors` and Flower's records.
    """
    return {k: v.detach().dequantize() if is_quantised(v) else v for k, v in state.items()}


def load_dequantised(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy values by name into a module; its quantised weights stay and must have these values.

    Parameters
    ----------
    module : nn.Module
        The module.
    state : Mapping[str, Tensor]
        All its weights as `dequantised` gives them; other names are passed over.

    Raises
    ------
    TrainingError
        If a quantised weight has another value.
    """
    own = module.state_dict()
    held = {name for name, value in own.items() if is_quantised(value)}
    for name in sorted(held):
        if not torch.equal(state[name], own[name].dequantize()):
            raise TrainingError(
                f"initial_arrays give '{name}' another value than the task builds, but it is "
                "quantised there; put the value into what the task's model() returns."
            )
    module.load_state_dict({k: state[k] for k in own if k not in held}, strict=not held)


def stay_frozen(*modules: nn.Module) -> None:
    """Refuse a quantised weight that is to be trained.

    Raises
    ------
    ConfigError
        If there is one.
    """
    for module in modules:
        for name, value in module.named_parameters():
            if value.requires_grad and is_quantised(value):
                raise ConfigError(
                    f"The parameter '{name}' is quantised ({type(value).__name__}) and would be "
                    "trained, but only floating point parameters can be; freeze it with "
                    "requires_grad_(False), or keep it in float32."
                )
