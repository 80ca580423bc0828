"""What a client's step costs beside what no method could leave out: memory, and probes in time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.dry import costless, dry_task
from benchmarks.figure import Figure
from benchmarks.step import step_seconds
from benchmarks.trial import options_for, train
from sfl_flower.presets import load_preset
from sfl_flower.run.run import Plan
from sfl_flower.split import called_layers, cut
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.task import SplitTask
from sfl_flower.tasks.vision import resnet18
from sfl_flower.training.meter import PeakMemory
from sfl_flower.training.modes import torch_threads
from sfl_flower.zo import Key, ParameterVector, run_key

__all__ = ["add_arguments", "peaks", "run"]

CUT, PROBES, MOST = "layer2", 4, 1.05
FEW, TURNS = 4, 31
"""Images where layers weigh most, and how often each way is timed."""
STEP_MOST, STEP_BATCH, ROUNDS = 1.1, 64, {PROBES: 31, HOSFLSettings().probes: 11}
"""Of a client's step over the forwards in it: the target, and rounds that are timed by P."""
MIB = 2**20


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--cost-batch", type=int, default=64, help="samples (default 64)")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the peak of HO-SFL's client step beside a forward's, and the time of a probe."""
    step, plain = peaks(args.cost_batch)
    yield Figure(
        "step_peak_vs_forward",
        step / plain,
        "ratio",
        MOST,
        f"HO-SFL's client, anchor and {PROBES} probes, {step / MIB:.2f} MiB, beside a forward "
        f"without a graph on the same mini-batch, {plain / MIB:.2f} MiB; ResNet-18, ImageNet "
        f"stem, cut after {CUT}, batch {args.cost_batch}, 3x32x32, BatchNorm in eval mode, torch's "
        "allocation records on the CPU, parameters left out",
        lower_is_better=True,
    )
    for probes, rounds in ROUNDS.items():
        step_s, bare_s, least_s = step_seconds(STEP_BATCH, probes, rounds)
        yield Figure(
            "step_least_vs_forwards" if probes == PROBES else f"step_least_vs_forwards_{probes}",
            least_s / bare_s,
            "ratio",
            None,
            f"the same forwards at weights that one addition of ready vectors writes beside the "
            f"anchor, the mini-batch taken twice and the products with λ, {1e3 * least_s:.1f} ms: "
            "no direction is drawn, nothing is checked or kept, and the half is there twice",
            lower_is_better=True,
        )
        yield Figure(
            "step_vs_forwards" if probes == PROBES else f"step_vs_forwards_{probes}",
            step_s / bare_s,
            "ratio",
            STEP_MOST,
            f"HO-SFL's client, anchor and {probes} probes {1e3 * step_s:.1f} ms: its mini-batch, "
            f"both handlers and what they keep, without messages and bringing it up; beside "
            f"{probes + 1} bare forwards, {1e3 * bare_s:.1f} ms; ResNet-18 to layer2, "
            f"ImageNet stem, {STEP_BATCH} x 3x32x32, channels last; medians of {rounds} in turn on "
            "one thread",
            lower_is_better=True,
        )
    for batch in (args.cost_batch, FEW):
        by_layer, at_once, forward = probe_seconds(batch)
        yield Figure(
            f"probe_by_layer_vs_at_once_{batch}",
            by_layer / at_once,
            "ratio",
            None,
            f"a probe and its forward of the same half, {batch} images, layer by layer "
            f"{1e3 * by_layer:.2f} ms, written at once {1e3 * at_once:.2f} ms, a plain forward "
            f"{1e3 * forward:.2f} ms; medians of {TURNS} in turn on one thread",
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


def probe_seconds(batch: int) -> tuple[float, float, float]:
    """Return medians of a probe layer by layer, of one at once, and of a forward."""
    half = cut(resnet18(10, stem="imagenet"), CUT).client.eval()
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vector = ParameterVector(half, layers=called_layers(half))
    directions = vector.directions(run_key("cost", 0), "rademacher")

    def seconds(around: AbstractContextManager[None]) -> float:
        began = time.perf_counter()
        with torch.no_grad(), around:
            half(x)
        return time.perf_counter() - began

    found: list[tuple[float, float, float]] = []
    with torch_threads(1):
        for turn in range(TURNS):
            u = directions.of(Key(turn))
            u.values()  # drawn before either way is timed
            ways = [vector.probe(u, 1e-3, at_once=at_once) for at_once in (False, True)]
            found.append((seconds(ways[0]), seconds(ways[1]), seconds(nullcontext())))
    by_layer, written, forward = (median(each) for each in zip(*found, strict=True))
    return by_layer, written, forward
