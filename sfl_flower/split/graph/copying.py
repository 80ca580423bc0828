"""Copies of a model, and why a model cannot be copied."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from sfl_flower.errors import CutError

__all__ = ["copied"]


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy ``model`` deeply, but for what ``memo`` holds.

    Raises
    ------
    CutError
        If a module has something that cannot be copied.
    """
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        kind, said = type(model).__name__, str(error).partition("\n")[0].partition(".  ")[0]
        raise CutError(f"{kind} cannot be copied ({said}); {_remedy(model)}.") from error


def _remedy(model: nn.Module) -> str:
    for path, module in model.named_modules():
        where = f"'{path}'" if path else "the outermost module"
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                return _computed(module, where, name)
            if name.startswith("_") or isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return (
                    f"{where} has an attribute '{name}', a {type(value).__name__}, that cannot be: "
                    "keep locks, files, connections and generators out of modules, or make them "
                    "where they are used"
                )
    return "cut it before its first forward, or keep no computed tensors as attributes"


def _computed(module: nn.Module, where: str, name: str) -> str:
    own = dict(module.named_parameters(recurse=False))
    if f"{name}_g" in own and f"{name}_v" in own:
        return (
            f"{where} has torch.nn.utils.weight_norm: use torch.nn.utils.parametrizations."
            "weight_norm instead"
        )
    if f"{name}_orig" in own:
        if f"{name}_mask" in dict(module.named_buffers(recurse=False)):
            return (
                f"{where} is pruned: make it permanent with torch.nn.utils.prune.remove(module, "
                f"'{name}')"
            )
        return (
            f"{where} has an old hook that computes '{name}': use its successor in "
            "torch.nn.utils.parametrizations instead"
        )
    return (
        f"{where} keeps the computed tensor '{name}' as an attribute: cut before its first "
        "forward, or keep it local to forward"
    )
