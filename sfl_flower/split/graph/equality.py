"""Run a module without leaving a trace, and compare what it gave bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.split.parameters.quantised import is_quantised, parts

__all__ = ["run", "same"]


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Forward copies of ``inputs``, without gradients and without moving the random generator."""
    with torch.random.fork_rng(devices=_cuda_devices(module)), torch.no_grad():
        return module(*(tensor.clone() for tensor in inputs))


def same(a: Any, b: Any) -> bool:
    """Tell whether two results, tensors or nests of them, are equal; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if is_quantised(a) or is_quantised(b):
            return same(dict(parts("", a)), dict(parts("", b)))
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _cuda_devices(module: nn.Module) -> list[int]:
    return sorted({p.get_device() for p in module.parameters() if p.is_cuda})
