"""Applying ±μu to 11 M parameters, beside a plain add and the peers' two ways."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from statistics import median
from time import perf_counter

import torch

from benchmarks.figure import Figure
from sfl_flower.zo import Directions, Key, run_key

__all__ = ["interleave", "run"]

SIZE = 11_000_000
REPEATS = 9
MU = 1e-3
_SETTING = (
    f"work = anchor + mu*u over {SIZE} float32, one CPU thread, a new Rademacher direction each "
    f"time, its words drawn inside the measured time; against {{}}; median of {REPEATS} "
    "interleaved repetitions of each side"
)


def interleave(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Run the sides in turn and return the median seconds of each; a first turn is not counted."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for side, measured in zip(sides, seconds, strict=True):
            start = perf_counter()
            side()
            if turn:
                measured.append(perf_counter() - start)
    return [median(measured) for measured in seconds]


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the three ratios: seconds of the other way over seconds of the package's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        add, normal, mezo, probe = interleave(_sides(), REPEATS)
    finally:
        torch.set_num_threads(threads)
    per_element = f"; here {1e9 * probe / SIZE:.2f} ns per parameter"
    for name, other, bound, what in (
        ("probe_vs_add", add, 0.5, "torch.add(a, b, out=c)"),
        ("probe_vs_normal", normal, 4.0, "normal_ into a reused buffer, then add(alpha=mu)"),
        ("probe_vs_mezo", mezo, 10.0, "torch.normal into new memory, then a + mu*u out of place"),
    ):
        yield Figure(name, other / probe, "ratio", bound, _SETTING.format(what) + per_element)


def _sides() -> list[Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(SIZE, generator=generator)
    other, work = torch.randn(SIZE, generator=generator), torch.empty(SIZE)
    rounds = count()
    directions = Directions(run_key("benchmark", "probe"), "rademacher", [(SIZE,)])

    def add() -> None:
        torch.add(anchor, other, out=work)

    def normal() -> None:
        other.normal_(generator=generator)
        torch.add(anchor, other, alpha=MU, out=work)

    def mezo() -> torch.Tensor:
        u = torch.normal(mean=0.0, std=1.0, size=(SIZE,), generator=generator)
        return anchor + MU * u

    def probe() -> None:
        directions.of(Key(next(rounds))).add_to(work, anchor, MU)

    return [add, normal, mezo, probe]
