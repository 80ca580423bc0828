"""Peaks of clients on a device, as the ledger has them: forwards alone, and backprop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.figure import Figure
from benchmarks.gpu.models import MODELS, Model
from benchmarks.gpu.runs import plan_on
from benchmarks.trial import train
from sfl_flower.training.meter import PeakMemory

__all__ = ["run"]

MIB = 2**20
METHODS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"probes": 2, "clip_norm": 0.0},
    "heron": {"probes": 2, "local_steps": 1, "head": "pooled"},
    "splitfed_v2": {"local_steps": 1},
    "cse_fsl": {"local_steps": 1, "head": "pooled"},
}
"""The last two train by backprop: with λ of the server, and with the loss of a head."""


def run(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield each method's peak on each model, in MiB and beside a forward's, whole and in parts."""
    models = [make(small) for make in MODELS]
    bare = {model.name: forward_peak(device, model) for model in models}
    for in_parts in (False, True):
        for model in models:
            for method in METHODS:
                parts = str(model.part) if in_parts else "all"
                yield _figure(device, model, method, parts, bare[model.name])


def _figure(device: torch.device, model: Model, method: str, parts: str, bare: int) -> Figure:
    plan = plan_on(
        device, model.task, method, clients=1, rounds=1, batch_size=model.batch,
        micro_batch=parts, **METHODS[method],
    )  # fmt: skip
    strategy = train(model.task, plan, 1)
    peak = strategy.ledger.client_peak_bytes
    del strategy
    if device.type == "cuda":
        torch.cuda.empty_cache()
    how = "" if parts == "all" else "_in_parts"
    return Figure(
        f"gpu_peak_{model.name}_{method}{how}",
        peak / MIB,
        "MiB",
        None,
        f"{model.what}; one step on {device.type}, micro_batch={parts}: {peak / max(1, bare):.3f} "
        f"of a plain forward's {bare / MIB:.1f} MiB on the whole batch; parameters not counted",
    )


def forward_peak(device: torch.device, model: Model) -> int:
    """Return the peak of a forward of the half without a graph, the mini-batch included."""
    half = model.task.build(0).client.eval().to(device)
    samples = model.task.samples("test")
    for _ in range(2):  # what libraries keep for a process is there the second time
        with PeakMemory(device) as meter, torch.no_grad():
            x, _ = model.task.batch(samples, slice(0, model.batch))
            half(x.to(device))
    return meter.peak
