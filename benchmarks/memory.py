"""Peak memory of one client's local step: HERON-SFL beside CSE-FSL, the real client code.

Each method runs one round of one step on the inline backend with the meter that every first
round has (`sfl_flower.training.meter.PeakMemory`, torch's own allocation records).  The server
half is not measured and computes nothing.  Here neither side is divided into micro-batches;
`benchmarks.matched_memory` divides them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import gpt2_memory, matched_memory
from benchmarks.dry import costless, dry_task
from benchmarks.figure import Figure
from benchmarks.trial import options_for, train
from sfl_flower.presets import load_preset
from sfl_flower.run.run import Plan
from sfl_flower.training.meter import PeakMemory
from sfl_flower.wire import state_bytes

__all__ = ["Peak", "add_arguments", "bare", "measure", "run"]

CUTS: dict[str, tuple[str, float | None]] = {"layer2": ("", 0.26), "layer1.0": ("_layer1_0", None)}
"""Where the model is cut: how the figure's name ends, and the ratio to reach.

The target belongs to the cut after layer2, where a bare forward beside a bare backward gives 0.24.
Behind the first block, the preset's cut, a forward already holds three of the eight maps that a
backward does: in, out and the residual.
"""
PAPER = 0.357
MIB = 2**20


@dataclass(frozen=True)
class Peak:
    """What a local step takes.

    Attributes
    ----------
    working : int
        Peak of what torch allocated in the step, bytes.
    parameters : int
        Bytes of client half and head that are there before.
    slots : int
        Bytes of the optimiser's state after the step.
    """

    working: int
    parameters: int
    slots: int


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--memory-batch", type=int, default=256, help="samples (default 256)")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the ratio of the two peaks for each cut, then of a GPT-2, then at equal memory."""
    for cut in CUTS:
        yield _figure(cut, args.memory_batch)
    yield from gpt2_memory.figures()
    yield from matched_memory.figures()


def _figure(cut: str, batch: int) -> Figure:
    heron, cse = (measure(method, cut, batch) for method in ("heron", "cse_fsl"))
    forward, backward = bare(cut, batch)
    ending, most = CUTS[cut]
    return Figure(
        f"client_peak_heron_vs_cse_fsl{ending}",
        heron.working / cse.working,
        "ratio",
        most,
        f"ResNet-18, CIFAR stem, cut after {cut}, batch {batch}, 3x32x32, head of one linear "
        f"layer, Adam, torch's allocation records on the CPU: HERON anchor + 1 probe + step "
        f"{_mib(heron.working)}, CSE-FSL forward + backward + step {_mib(cse.working)}, neither in "
        f"micro-batches; apart from that parameters {_mib(heron.parameters)} in both; the "
        f"optimiser's state, {_mib(cse.slots)} in both, is inside CSE-FSL's peak (torch's) and not "
        f"in HERON's (numpy's): with it {(heron.working + heron.slots) / cse.working:.3f}; a bare "
        f"forward of the client half beside a bare forward and backward, {_mib(forward)} and "
        f"{_mib(backward)}, {forward / backward:.3f}; the paper {PAPER}",
        lower_is_better=True,
    )


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def measure(method: str, cut: str, batch: int) -> Peak:
    """Run one local step of a method in HERON's setting.

    Parameters
    ----------
    method : {"heron", "cse_fsl"}
        The method.
    cut : str
        A layer of torchvision's ResNet-18.
    batch : int
        Samples of the step.
    """
    options = {**_options(method), "task.cut": cut, "batch_size": batch}
    task = dry_task(options, batch)
    plan = Plan.read({**options, "eval_every": 10**6})
    strategy: Any = None

    def is_image(x: Tensor) -> bool:
        return x.shape[1] == 3

    with costless(but=is_image):
        strategy = train(task, plan, 1)
    trained = [*_trained(strategy.client_half), *_trained(strategy.head)]
    parameters = state_bytes(strategy.client_half.state_dict()) + state_bytes(
        strategy.head.state_dict()
    )
    return Peak(strategy.ledger.client_peak_bytes, parameters, 2 * sum(map(_bytes, trained)))


def bare(cut: str, batch: int) -> tuple[int, int]:
    """Return the peaks of the client half's forward, and of its forward and backward, in bytes."""
    task = dry_task({**_options("heron"), "task.cut": cut}, batch)
    half = task.build(0).client.train()
    x, _ = task.batch(task.samples("train"), slice(None))
    with PeakMemory() as forward, torch.no_grad():
        half(x)
    with PeakMemory() as backward:
        half(x).sum().backward()
    return forward.peak, backward.peak


def _options(method: str) -> dict[str, Any]:
    preset = load_preset("heron_resnet18_cifar10").options
    return options_for(method, preset, clients=1, local_steps=1, client_optimizer="adam")


def _trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
