"""What is held against a decoder: no crash, no hang, no memory beyond a limit, and a reason."""

from __future__ import annotations

import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from benchmarks.fuzzing.damage import Draw
from benchmarks.fuzzing.targets import Target
from sfl_flower.errors import SflError
from sfl_flower.wire.padding import MAX_BYTES

__all__ = ["LONGEST", "SLOW", "Watch"]

SLOW = 1.0
"""Seconds of the processor above which an input counts as a hang."""
LONGEST = 10.0
"""Seconds of the processor after which one that does not come back is broken off."""
KEPT = 20
"""Findings of each kind that are told in full."""


class _Hang(BaseException):
    """Raised inside a decoder that does not come back."""


@dataclass
class Watch:
    """What came of inputs.

    Attributes
    ----------
    inputs, read, refused : Counter of str
        By kind of decoder, how many there were, were read, and were refused.
    crashes, hangs, silent, large : list of str
        Inputs that raised what is no `SflError`, took too long, were refused without a reason, or
        took more memory than may be read (`MAX_BYTES`); the first ones, each with its bytes.
    found : Counter of str
        How many of each of these there were.
    largest : int
        Most bytes that one input took.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    largest: int = 0

    def run(self, kind: str, target: Target, data: bytes) -> None:
        """Give an input to a decoder; `watching` is open."""
        self.inputs[kind] += 1
        tracemalloc.reset_peak()
        before, began, hung = tracemalloc.get_traced_memory()[0], time.thread_time(), False
        try:
            with _broken_off():
                target(Draw(data))
            self.read[kind] += 1
        except SflError as error:
            self.refused[kind] += 1
            if not str(error).strip():
                self._keep("silent", kind, type(error).__name__, data)
        except _Hang:
            hung = True
            self._keep("hangs", kind, f"not back after {LONGEST:g} s", data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._keep("crashes", kind, f"{type(error).__name__}: {error}"[:200], data)
        taken = time.thread_time() - began
        if taken > SLOW and not hung:
            self._keep("hangs", kind, f"{taken:.1f} s", data)
        peak = tracemalloc.get_traced_memory()[1] - before
        self.largest = max(self.largest, peak)
        if peak > MAX_BYTES:
            self._keep("large", kind, f"{peak} bytes", data)

    def _keep(self, what: str, kind: str, told: str, data: bytes) -> None:
        self.found[what] += 1
        kept: list[str] = getattr(self, what)
        if len(kept) < KEPT:
            kept.append(f"{kind}, {told}, input {data.hex()}")

    def add(self, other: Watch) -> None:
        """Add what came of other inputs."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            if isinstance(own, Counter):
                own.update(value)
            elif isinstance(own, list):
                own.extend(value)
        self.largest = max(self.largest, other.largest)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Watch:
        """Return what `to_dict` gave."""
        kept: dict[str, Any] = {}
        for name, value in values.items():
            kept[name] = Counter(value) if isinstance(value, dict) else value
        return cls(**kept)

    @staticmethod
    @contextmanager
    def watching() -> Iterator[None]:
        """Trace memory, and let what does not come back be broken off."""
        tracemalloc.start()
        before = signal.signal(signal.SIGPROF, _raise)
        try:
            yield
        finally:
            signal.signal(signal.SIGPROF, before)
            tracemalloc.stop()


@contextmanager
def _broken_off() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, LONGEST, 1.0)  # again, where one is swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _raise(number: int, frame: FrameType | None) -> None:
    raise _Hang
