"""Meters: the peak of allocated memory, and floating-point operations."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch._C._autograd import _profiler_enabled
from torch.profiler import ProfilerActivity, profile

from sfl_flower.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["PeakMemory", "counting_flops", "profiled"]

# The profiler's trace collector is one per process: two at once cancel each other.
_COLLECTOR = threading.Lock()


def counting_flops() -> FlopCounterMode:
    """Return a context that counts operations; ``get_total_flops()`` tells them.

    It is torch's counter with another rule for the backward of convolutions, whose gradient of
    weights torch counts as if there were no groups: 33 forwards in place of 2 where a depthwise
    convolution has 32 channels. The gradients of inputs and of weights have as many products as
    the forward, each.
    """
    # It imports triton; clients count in one round of a run.
    from torch.utils.flop_counter import FlopCounterMode

    own = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=own)


def _convolution_backward(
    out: list[int], x: list[int], weight: list[int], *settings: Any, **_given: Any
) -> int:
    from torch.utils.flop_counter import conv_flop_count

    # Sizes of the bias, stride, padding, dilation, transposed, output padding, groups, mask.
    transposed, mask = settings[4], settings[7]
    once: int = conv_flop_count(x, weight, out, transposed)
    return once * sum(map(bool, mask[:2]))


def profiled() -> bool:
    """Tell whether a profiler of torch runs on this thread, beside which memory is not measured."""
    return bool(_profiler_enabled())


class PeakMemory:
    """Measures the peak of what torch allocates inside a ``with`` block.

    On the CPU the number comes from torch's own allocation records (``torch.profiler`` with
    ``profile_memory``), so it does not depend on what else the process holds. On CUDA it is
    ``torch.cuda.max_memory_allocated``, whose peak is reset at entry; the workspace that cuBLAS
    keeps for a process is there before.

    Counted are tensors, saved activations and workspaces that torch's allocator serves to the
    thread that runs the block, a backward included. Not counted are tensors of other threads,
    memory of numpy, and scratch space that libraries below torch (oneDNN) allocate for themselves.
    Memory that was allocated before the block and is freed inside it does not lower the level on
    the CPU (torch may then warn once about a block of unknown size).

    Parameters
    ----------
    device : torch.device or str
        A CPU or CUDA device; allocations on other devices are not counted.

    Attributes
    ----------
    peak : int
        Most bytes allocated in the block and alive at one time, above the level at entry; set when
        the block ends.
    levels : list of int
        Bytes alive after each allocation and release in the block, above the level at entry; empty
        on CUDA, where only the peak is known.

    Raises
    ------
    ConfigError
        If `device` is neither ``cpu`` nor an available CUDA device.
    TrainingError
        If a profiler already runs on this thread, at entry.

    Notes
    -----
    The block's results are not changed. The cost on the CPU is about 1 ms a block and 5 to 8 µs for
    each operation that torch records, inner ones included: 10 to 20 per cent for a ResNet-18 on
    8 small images on one core, but 120 µs on top of 25 µs for a forward of a two-layer perceptron.
    Records are kept until the block ends, so measure a step or a round, not a run, and not where
    time is measured. Blocks on several threads of one process wait for one another.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.peak = 0
        self.levels: list[int] = []
        self._profile: Any = None
        self._base = 0
        if self.device.type not in ("cpu", "cuda"):
            raise ConfigError(f"cannot measure memory on {self.device}; use cpu or cuda")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"cannot measure memory on {self.device}: torch sees no CUDA device")

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self.levels = []
        if self.device.type == "cuda":
            _open_blas(self.device)
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
            return self
        if profiled():
            raise TrainingError(
                "cannot measure memory: a profiler already runs on this thread; end it before"
            )
        # Kineto writes lines to standard error at every start unless told otherwise.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        _COLLECTOR.acquire()
        try:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.__enter__()
        except BaseException:
            _COLLECTOR.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = max(0, torch.cuda.max_memory_allocated(self.device) - self._base)
            return
        try:
            self._profile.__exit__(None, None, None)
            results = self._profile.profiler.kineto_results
            self.levels = _levels(results.experimental_event_tree())
            self.peak = max(self.levels, default=0)
        finally:
            self._profile = None
            _COLLECTOR.release()


def _open_blas(device: torch.device) -> None:
    """Let cuBLAS take the workspace that it keeps, some MiB at the first product of a process.

    Torch's allocator serves it; taken inside a block, it would pass for a step's memory.
    """
    tile = torch.zeros(16, 16, device=device)
    torch.addmm(tile[0], tile, tile)
    torch.mm(tile, tile)


def _levels(roots: list[Any]) -> list[int]:
    """Return the bytes allocated on the CPU by these events and not yet freed, after each of them.

    A release counts when its allocation is among the events: torch knows the size of an older block
    only if some earlier profile saw it, and may then know it wrongly.
    """
    records = []
    waiting = list(roots)
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag.name == "Allocation" and event.extra_fields.device.type == "cpu":
            records.append((event.start_time_ns, event.extra_fields))
    live: dict[int, int] = {}
    level, found = 0, []
    for _, record in sorted(records, key=lambda pair: pair[0]):
        # A block that another thread freed may be handed out again: the old size goes in any case.
        level -= live.pop(record.ptr, 0)
        if record.alloc_size > 0:
            live[record.ptr] = record.alloc_size
            level += record.alloc_size
        found.append(level)
    return found
