"""Meters: the peak of allocated memory, and how often a module runs forward and backward."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.hooks import RemovableHandle

__all__ = ["CallCounter", "PeakMemory"]


class PeakMemory:
    """Measures the peak of what torch allocates inside a ``with`` block.

    Attributes
    ----------
    peak : int
        Bytes above the level at entry; set when the block ends.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.peak = 0
        self._profile: Any = None
        self._base = 0

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._profile is None:
            torch.cuda.synchronize(self.device)
            self.peak = max(0, torch.cuda.max_memory_allocated(self.device) - self._base)
            return
        self._profile.__exit__(kind, error, trace)
        inner = self._profile.profiler
        events = [e for e in inner.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda e: e.start_ns())
        level = 0
        for event in events:
            level += event.nbytes()
            self.peak = max(self.peak, level)
        self._profile = None


class CallCounter:
    """Counts the forwards and backwards of a module inside a ``with`` block.

    Attributes
    ----------
    forwards, backwards : int
        Calls so far; they stay after the block ends.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forwards = 0
        self.backwards = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> CallCounter:
        self._handles = [self.module.register_forward_hook(self._forward)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self.forwards += 1
        if getattr(output, "requires_grad", False):
            output.register_hook(self._backward)

    def _backward(self, grad: torch.Tensor) -> None:
        self.backwards += 1
