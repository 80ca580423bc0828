"""What a client's step costs beside what no method could leave out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.dry import costless, dry_task
from benchmarks.figure import Figure
from benchmarks.trial import options_for, train
from sfl_flower.presets import load_preset
from sfl_flower.run.run import Plan
from sfl_flower.task import SplitTask
from sfl_flower.training.meter import PeakMemory

__all__ = ["add_arguments", "peaks", "run"]

CUT, PROBES, MOST = "layer2", 4, 1.05
MIB = 2**20


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--cost-batch", type=int, default=64, help="samples (default 64)")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the peak of HO-SFL's client step beside a forward's."""
    step, forward = peaks(args.cost_batch)
    yield Figure(
        "step_peak_vs_forward",
        step / forward,
        "ratio",
        MOST,
        f"HO-SFL's client, anchor and {PROBES} probes, {step / MIB:.2f} MiB, beside a forward "
        f"without a graph on the same mini-batch, {forward / MIB:.2f} MiB; ResNet-18, ImageNet "
        f"stem, cut after {CUT}, batch {args.cost_batch}, 3x32x32, BatchNorm in eval mode, torch's "
        "allocation records on the CPU, parameters left out",
        lower_is_better=True,
    )


def peaks(batch: int) -> tuple[int, int]:
    """Return the peaks of a client's first round and of a forward of its half, in bytes."""
    preset = load_preset("ho_sfl_resnet18_cifar10").options
    own = {"clients": 1, "sampled": 1, "probes": PROBES, "batch_size": batch, "task.cut": CUT}
    options: dict[str, Any] = options_for("ho_sfl", preset, **own)
    task = dry_task(options, batch)

    def is_image(x: Tensor) -> bool:
        return x.shape[1] == 3

    with costless(but=is_image):
        strategy: Any = train(task, Plan.read({**options, "eval_every": 10**6}), 1)
    return strategy.ledger.client_peak_bytes, forward_peak(task)


def forward_peak(task: SplitTask) -> int:
    """Return the peak of a forward without a graph, the mini-batch included."""
    half, samples = task.build(0).client.eval(), task.samples("train")
    with PeakMemory() as meter, torch.no_grad():
        x, _ = task.batch(samples, torch.arange(len(samples)).numpy())
        half(x)
    return meter.peak
