"""How often the host waits for the device while a mini-batch is probed: once, for its scalars."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.figure import Figure
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.runs import waited
from sfl_flower.split import called_layers
from sfl_flower.training.device import full_precision
from sfl_flower.zo import (
    LAWS,
    ParameterVector,
    Probing,
    Sweep,
    loss_scalars,
    run_key,
    surrogate_scalars,
)

__all__ = ["run"]

MU = 1e-3
_ATEN = torch.ops.aten
_TELLS = (_ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.equal, _ATEN.is_nonzero)


class _Asked(TorchDispatchMode):
    """Counts what gives the host a number of a tensor, where nothing waits because all is here."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        chooses = packet is _ATEN.index and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        if chooses or packet in _TELLS:
            self.places[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count, for the length of a block, where the host waits for the device.

    On CUDA torch says so itself (`torch.cuda.set_sync_debug_mode`), with the line that asked. On
    the CPU, where nobody waits, counted is what would not do without.
    """
    found: Counter[str] = Counter()
    if device.type != "cuda":
        with _Asked() as mode:
            yield found
        found.update(mode.places)
        return
    waited(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in said:
        if "called a synchronizing" in str(warning.message):
            found[f"{warning.filename.rpartition('/')[2]}:{warning.lineno}"] += 1


def run(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield waits of a mini-batch of each model, for two probes and for six, of all laws."""
    for number, make in enumerate(MODELS):
        model = make(small)
        half = model.task.build(0).client.eval().to(device)
        vector = ParameterVector(half, layers=called_layers(half))
        x, _ = model.task.batch(model.task.samples("test"), slice(0, model.part))
        x = x.to(device)
        for law in LAWS if number == 0 else ("rademacher",):
            yield _figure(device, f"{model.name}_{law}", half, vector, x, law)


def _figure(
    device: torch.device,
    name: str,
    half: Callable[[Tensor], Tensor],
    vector: ParameterVector,
    x: Tensor,
    law: str,
) -> Figure:
    counts: list[int] = []
    places: Counter[str] = Counter()
    with full_precision(), torch.no_grad():
        z = half(x)
        zero = torch.zeros((), dtype=torch.float64, device=device)
        for turn, probes in enumerate((2, 2, 6)):  # the first warms up what waits once a process
            probing = Probing(probes, law, MU)
            us = vector.directions(run_key("waits"), law).of_step(turn, 0, 1, probes)
            with waits(device) as found:
                surrogate_scalars(lambda: half(x), vector, us, probing, z, z)
                loss_scalars(lambda: half(x).square().mean(), vector, us, probing)
                sweep = Sweep(vector, us, probing, zero)
                sweep.add(lambda total: total + half(x).square().mean().double())
                sweep.scalars()
            counts.append(found.total())
            places = found
    return Figure(
        f"gpu_waits_per_probe_{name}",
        (counts[2] - counts[1]) / 4,
        "waits",
        0.0,
        f"three passes over a mini-batch on {device.type}: {counts[1]} waits for two probes, "
        f"{counts[2]} for six; at {', '.join(f'{k} ({v})' for k, v in places.items()) or 'none'}",
        lower_is_better=True,
    )
