"""A mini-batch of HO-SFL whose probes rerun only what they move, beside one that runs all again.

On client halves of which the last block is trained: the anchor's forward and P probes, time and
operations of one form over the other in the same seconds, and the operations over backprop's. That
is counted as a forward and two more of what it goes through (torch's counter overstates grouped
convolutions).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figure import Figure
from benchmarks.probe import interleave
from sfl_flower.split import parted
from sfl_flower.tasks import load_task
from sfl_flower.zo import ParameterVector, Probing, run_key, surrogate_scalars

__all__ = ["run"]

PROBES, REPEATS, SAMPLES = 4, 5, 8


@dataclass(frozen=True)
class Case:
    """A client half of which the last block is trained.

    Attributes
    ----------
    name : str
        Of the figures.
    task : str
        A name of `load_task`.
    trained : str
        Which parameters.
    options : dict
        Of the task.
    """

    name: str
    task: str
    trained: str = "last:1"
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("minilm", "sst2", options={"lora_rank": 0, "cut": "block:6", "train_size": 100}),
    Case("efficientnet", "efficientnet_cifar10", options={"train_size": 100}),
)


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield ratios: of what runs only what moves over what runs all again, and over backprop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in CASES:
            yield from _figures(case)
    finally:
        torch.set_num_threads(threads)


def _figures(case: Case) -> Iterator[Figure]:
    task = load_task(case.task, trained=case.trained, **case.options)
    half = task.build(0).client.eval()
    x, _ = task.batch(task.samples("train"), slice(0, SAMPLES))
    vector = ParameterVector(half)
    whole, parts = _forms(half, vector, x)
    counts = [_operations(form) for form in (whole, parts)]
    forward = counts[0] / (1 + PROBES)
    same = forward + 2 * (counts[1] - forward) / PROBES
    seconds = interleave((whole, parts), REPEATS)
    said = (
        f"{case.task} cut at {task.cut}, trained={case.trained} ({vector.size} parameters), "
        f"{SAMPLES} samples, an anchor and {PROBES} probes, one CPU thread"
    )
    yield Figure(
        f"prefix_flops_{case.name}",
        counts[1] / counts[0],
        "ratio",
        None,
        f"{said}: {counts[1] / 1e9:.2f} GFLOP over {counts[0] / 1e9:.2f} of whole forwards",
    )
    yield Figure(
        f"prefix_time_{case.name}",
        seconds[1] / seconds[0],
        "ratio",
        None,
        f"{said}: {1e3 * seconds[1]:.0f} ms over {1e3 * seconds[0]:.0f}, median of {REPEATS} "
        "interleaved repetitions",
    )
    yield Figure(
        f"prefix_vs_backprop_{case.name}",
        counts[1] / (3 * forward),
        "ratio",
        None,
        f"{said}: operations over {3 * forward / 1e9:.2f} GFLOP of backprop through all weights; "
        f"{counts[1] / same:.2f} of backprop through the same trained ones",
    )


def _forms(
    half: nn.Module, vector: ParameterVector, x: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a mini-batch of whole forwards, and one that runs what moves alone."""
    us = vector.directions(run_key("benchmark"), "rademacher").of_step(0, 0, 0, PROBES)
    parts = parted(half, vector.parameters)
    assert parts is not None

    def scalars(forward: Callable[[], Tensor]) -> Tensor:
        z = forward()
        return surrogate_scalars(forward, vector, us, Probing(PROBES), z, torch.ones_like(z))

    def whole() -> Tensor:
        with torch.no_grad():
            return scalars(lambda: half(x))

    def once() -> Tensor:
        values = parts.first(x)
        return scalars(lambda: parts.rest(values))

    assert torch.equal(whole(), once())
    return whole, once


def _operations(form: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        form()
    return int(counter.get_total_flops())
