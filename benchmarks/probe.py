"""Applying ±μu to 11 M parameters, beside a plain add and the peers' two ways.

And a mini-batch of eight probes in two forms: a forward for each at weights written for it, and one
forward for all along rank-one directions, beside the products of the layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figure import Figure
from sfl_flower.zo import Directions, Key, ParameterVector, Probing, run_key, surrogate_scalars
from sfl_flower.zo.beside import Beside
from sfl_flower.zo.estimator import Together

__all__ = ["interleave", "run"]

SIZE = 11_000_000
REPEATS = 9
MU = 1e-3
PROBES = 8
BLOCK = 1 << 18
"""Elements that a probe writes before it adds the anchor to them."""
WORDS, WIDTH = 2000, 128
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
    """Yield ratios: seconds of the other way over seconds of the package's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        add, normal, mezo, probe, written = interleave(_sides(), REPEATS)
        halves = [(name, interleave(_forms(half, x), REPEATS)) for name, half, x in _halves()]
    finally:
        torch.set_num_threads(threads)
    per_element = f"; here {1e9 * probe / SIZE:.2f} ns per parameter"
    for name, other, bound, what in (
        ("probe_vs_add", add, 0.85, "torch.add(a, b, out=c)"),
        ("probe_vs_normal", normal, 4.0, "normal_ into a reused buffer, then add(alpha=mu)"),
        ("probe_vs_mezo", mezo, 10.0, "torch.normal into new memory, then a + mu*u out of place"),
    ):
        yield Figure(name, other / probe, "ratio", bound, _SETTING.format(what) + per_element)
    yield Figure(
        "written_vs_add",
        add / written,
        "ratio",
        None,
        "what probe_vs_add would be if signs cost nothing: blocks of as many elements as a probe "
        "writes are filled with one constant, then the anchor is added to them; whatever makes "
        "signs by array operations writes them before it adds them",
    )
    for name, (written, plain, stacked) in halves:
        yield Figure(
            f"stack_{name}",
            written / stacked,
            "ratio",
            None,
            f"{PROBES} probes of a mini-batch, one CPU thread: written Rademacher weights "
            f"{1e3 * written:.1f} ms, over rank_one with stack={PROBES} {1e3 * stacked:.1f} ms; "
            f"rank_one written {1e3 * plain:.1f} ms; median of {REPEATS} interleaved repetitions",
        )


class _Block(nn.Module):
    """A transformer's block on states [n, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (
            t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.before(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        x = x + self.out(mixed)
        moved: Tensor = x + self.down(functional.gelu(self.up(self.between(x))))
        return moved


def _halves() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield name, client half and mini-batch."""
    generator = torch.Generator().manual_seed(0)
    for samples in (1, 32):
        convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        x = torch.randn(samples, 1, 28, 28, generator=generator)
        yield f"cnn_{samples}_samples", convolutions, x
    for texts in (1, 4, 16):
        blocks = nn.Sequential(nn.Embedding(WORDS, WIDTH), _Block(), _Block())
        x = torch.randint(0, WORDS, (texts, 32), generator=generator)
        yield f"transformer_{texts}_texts_of_32", blocks, x


def _forms(half: nn.Module, x: Tensor) -> list[Callable[[], object]]:
    """Return a mini-batch of probes by written weights of two laws, and in one forward."""
    vector, rounds = ParameterVector(half), count()
    with torch.no_grad():
        z = half(x)
    beside = Beside.open(half, vector, half, x)
    assert beside is not None
    together = Together(beside, half, x, lambda part: part, PROBES)

    def probes(law: str, at_once: Together | None) -> Callable[[], object]:
        directions, probing = vector.directions(run_key("benchmark"), law), Probing(PROBES, law, MU)

        def form() -> Tensor:
            us = directions.of_step(next(rounds), 0, 0, PROBES)
            return surrogate_scalars(lambda: half(x), vector, us, probing, z, z, at_once)

        return form

    return [probes("rademacher", None), probes("rank_one", None), probes("rank_one", together)]


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

    pairs = list(zip(anchor.split(BLOCK), work.split(BLOCK), strict=True))

    def written() -> None:
        for base, out in pairs:
            out.fill_(MU)
            torch.add(base, out, out=out)

    return [add, normal, mezo, probe, written]
