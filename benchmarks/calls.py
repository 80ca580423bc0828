"""How often a module runs forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

__all__ = ["CallCounter"]


class CallCounter:
    """Counts the forwards and backwards of a module inside a ``with`` block.

    A backward is counted when a gradient reaches an output of the module, once for each backward
    pass through each forward, however many outputs there are.

    Parameters
    ----------
    module : nn.Module
        The module; calls of its children do not count.

    Attributes
    ----------
    forwards, backwards : int
        Calls while the block was open; they start at 0 at each entry.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forwards = 0
        self.backwards = 0
        self._handles: list[Any] = []

    def __enter__(self) -> CallCounter:
        self.forwards = self.backwards = 0
        self._handles = [self.module.register_forward_hook(self._forward)]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self.forwards += 1
        outputs = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if outputs:
            self._handles.append(register_multi_grad_hook(outputs, self._backward, mode="any"))

    def _backward(self, grad: Tensor) -> None:
        self.backwards += 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
