"""What is trained on the server as the named tensors of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.optim import load_slots, slots

__all__ = ["load_trained", "named", "trained_tensors", "under"]

_MODEL, _OPTIMIZER = "model.", "optimizer."


def trained_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of what travels of a module and of its optimiser's state."""
    found = {f"{_MODEL}{name}": value.clone() for name, value in travelling_state(module).items()}
    return found | {f"{_OPTIMIZER}{name}": value for name, value in slots(optimizer).items()}


def load_trained(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `trained_tensors` gave.

    Raises
    ------
    TrainingError
        If the tensors belong to another model.
    """
    load_travelling(module, under(_MODEL, tensors))
    load_slots(optimizer, under(_OPTIMIZER, tensors))


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a prefix before their names; `under` takes it off again."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, named by what follows it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
