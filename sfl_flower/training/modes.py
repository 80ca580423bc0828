"""Settings of torch and of modules that hold for the length of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["buffers_put_back", "changes_by_mode", "eval_mode", "kept_buffers", "torch_threads"]


def changes_by_mode(module: nn.Module) -> bool:
    """Tell whether a module, as it is, would do otherwise in eval mode.

    BatchNorm and its kin, and dropout; what is in eval mode for good does not count.
    """
    return any(
        part.training
        and (isinstance(part, _NormBase) or (isinstance(part, _DropoutNd) and part.p > 0))
        for part in module.modules()
    )


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run a block with this many torch threads: a sum may depend on how it is divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Run a block with modules in eval mode, then put every submodule's own mode back."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Run a block after which the buffers (BatchNorm's running statistics) are as before."""
    before = _copies([module])
    try:
        yield
    finally:
        _put_back(before)


@contextmanager
def buffers_put_back(*modules: nn.Module) -> Iterator[None]:
    """Run a block that moves buffers, statistics and counters; if it raises, they go back."""
    before = _copies(modules)
    try:
        yield
    except BaseException:
        _put_back(before)
        raise


def _copies(modules: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]


def _put_back(before: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
