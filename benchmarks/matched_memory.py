"""First order at no more memory than forwards: which micro-batch does that, and what it costs.

Peaks are those of the real client code, one local step on one mini-batch, server halves computing
nothing.  Forward-only clients run the mini-batch at once; beside them stand clients of first order
in the largest micro-batches that fit into the same peak, with and without activation checkpointing,
and the floor of both, with one or two samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from benchmarks import gpt2_memory
from benchmarks.dry import costless, dry_task
from benchmarks.figure import Figure
from benchmarks.trial import options_for
from sfl_flower.methods import read_options
from sfl_flower.presets import load_preset
from sfl_flower.run.micro_batch import client_peak, largest_within
from sfl_flower.task import SplitTask

__all__ = ["figures"]

PAIRS = {"splitfed_v2": "ho_sfl", "cse_fsl": "heron"}
"""Each method of first order, and the one of forwards that sends the same."""
FORWARDS = {"splitfed_v2": 4, "cse_fsl": 3, "ho_sfl": 5, "heron": 5}
"""Forwards a sample, a backprop counted as two; P = 4."""
BATCH = 32
MIB = 2**20


def figures() -> Iterator[Figure]:
    """Yield the figures of a ResNet-18, then those of a GPT-2."""
    preset = load_preset("heron_resnet18_cifar10").options
    options = {
        **preset, "task.cut": "layer2", "batch_size": BATCH, "client_mode": "eval",
        "client_optimizer": "sgd", "local_steps": 1, "client_momentum": 0.0, "probes": 4,
    }  # fmt: skip
    what = f"ResNet-18, CIFAR stem, cut after layer2, batch {BATCH}, 3x32x32, client_mode=eval"
    with costless(but=lambda x: x.shape[1] == 3):
        yield from _compared("", what, dry_task(options, BATCH), options)
    size, tokens = gpt2_memory.BATCH, gpt2_memory.TOKENS
    texts = {"task": "gpt2-memory", "batch_size": size, "head": "pooled", "probes": 4,
             "client_optimizer": "sgd", "local_steps": 1}  # fmt: skip
    what = f"GPT-2 small, random weights, cut behind block 3, LoRA rank 8, batch {size} x {tokens}"
    with costless(but=lambda x: not x.is_floating_point()):
        yield from _compared("_gpt2", what, gpt2_memory.task(blocks=4), texts)


def _compared(
    ending: str, what: str, task: SplitTask, options: Mapping[str, Any]
) -> Iterator[Figure]:
    size = int(options["batch_size"])
    for first, forwards in PAIRS.items():
        peak = _peaks(task, forwards, options)
        budget, floor = peak(size + 1), min(peak(1), peak(2))
        for lean in (False, True):
            own = _peaks(task, first, {**options, "checkpointing": lean})
            found, peaks = largest_within(budget, own, size)
            at = found or min(peaks, key=peaks.__getitem__)
            yield Figure(
                f"client_peak_matched_{first}{'_checkpointing' if lean else ''}{ending}",
                peaks[at] / budget,
                "ratio",
                1.0,
                f"{what}: {first}{' with checkpointing' if lean else ''} in micro-batches of {at} "
                f"{_mib(peaks[at])}, beside {forwards} on the whole mini-batch {_mib(budget)}; the "
                f"mini-batch at once {_mib(own(size + 1))}; {FORWARDS[first] + lean} forwards a "
                f"sample (a backprop is two), {forwards} with P = 4 {FORWARDS[forwards]}; at the "
                f"floor, a sample or two at a time, {first} {_mib(min(own(1), own(2)))} and "
                f"{forwards} {_mib(floor)}",
                lower_is_better=True,
            )


def _peaks(task: SplitTask, method: str, options: Mapping[str, Any]) -> Callable[[int], int]:
    known = {k: v for k, v in options.items() if not k.startswith("task.")}
    config, found, settings, _ = read_options(options_for(method, known))
    return cache(partial(client_peak, task, found, config, settings))


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
