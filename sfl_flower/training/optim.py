"""Torch's optimisers by name, for whichever half is trained by backprop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["FIRST_ORDER", "load_slots", "make_optimizer", "optimizer_text", "slots"]

FIRST_ORDER = ("sgd", "adam", "adamw")
"""Names of the optimisers."""


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    name: str,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return torch's optimiser of a name in `FIRST_ORDER`; momentum is for SGD."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    # One pass over the weights instead of a dozen.
    return kind(trained, lr=lr, weight_decay=weight_decay, fused=True)


def optimizer_text(name: str, lr: float, momentum: float, weight_decay: float) -> str:
    """Return an optimiser and its settings as the canonical JSON that travels."""
    settings = {"name": name, "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    return json.dumps(settings, sort_keys=True)


def slots(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named ``<parameter index>.<slot>``."""
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def load_slots(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Put back what `slots` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in found.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
