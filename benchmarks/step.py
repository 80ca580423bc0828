"""What a HO-SFL client runs for a mini-batch, beside the bare forwards in it.

And beside the least that forwards at other weights need: weights written next to the anchor by an
addition of ready vectors, a mini-batch taken twice, and products with λ; no signs are drawn,
nothing is checked, kept or measured, and the half is there a second time.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.trial import train
from sfl_flower.clients import ho_sfl
from sfl_flower.methods import METHODS, Method
from sfl_flower.node.node import Node
from sfl_flower.node.sync import bring_up
from sfl_flower.run.run import Plan
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.tasks import load_task
from sfl_flower.training.modes import torch_threads
from sfl_flower.wire import StaleReply
from sfl_flower.wire.common import Sync
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeReply, ProbeRequest

__all__ = ["Least", "step_seconds"]

START_UP = 3
"""First rounds, which are not counted: clients download, and measure themselves."""


class _Timed:
    """The client's handlers, whose seconds of a round are added up; bringing it up is left out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def method(self) -> Method:
        """Return HO-SFL with these handlers."""

        def forward(node: Node, request: ForwardRequest) -> ForwardReply | StaleReply:
            before, at = bring_up(node, request.sync), request.sync
            if isinstance(before, StaleReply):
                return before
            stays = Sync("none", at.version, at.digest, at.version, at.digest)
            began = perf_counter()
            reply = ho_sfl.forward(node, replace(request, sync=stays))
            self.seconds += perf_counter() - began
            return reply if isinstance(reply, StaleReply) else replace(reply, version=before)

        def probe(node: Node, request: ProbeRequest) -> ProbeReply | StaleReply:
            began = perf_counter()
            reply = ho_sfl.probe(node, request)
            self.seconds += perf_counter() - began
            return reply

        return replace(METHODS["ho_sfl"], handlers={"forward": forward, "probe": probe})


class Least:
    """Probes whose directions are ready vectors; the half is there a second time."""

    def __init__(self, module: nn.Module, probes: int) -> None:
        self.module = module
        self._held = list(module.parameters())
        self._anchor = torch.cat([parameter.detach().reshape(-1) for parameter in self._held])
        self._work = torch.empty_like(self._anchor)
        self._steps = [1e-3 * torch.ones_like(self._anchor) for _ in range(probes)]

    def probe(self, x: Tensor, z: Tensor) -> list[Tensor]:
        """Return ``<z, f_c(x; θ + step) - z>`` of every step, without a graph."""
        found = []
        for step in self._steps:
            torch.add(self._anchor, step, out=self._work)
            self._point(self._work)
            found.append((self.module(x) - z).mul_(z).sum(dtype=torch.float64))
        self._point(self._anchor)
        return found

    def _point(self, flat: Tensor) -> None:
        sizes = [parameter.numel() for parameter in self._held]
        for parameter, values in zip(self._held, flat.split(sizes), strict=True):
            parameter.data = values.view(parameter.shape)


def step_seconds(batch: int, probes: int, rounds: int) -> tuple[float, float, float]:
    """Return medians of a client's step, of P + 1 bare forwards and of the least, on one thread.

    Parameters
    ----------
    batch, probes : int
        Samples of the mini-batch, and P.
    rounds : int
        How often each is timed.
    """
    task, timed = load_task("synthetic"), _Timed()
    half, least = task.build(0).client.eval(), Least(task.build(0).client.eval(), probes)
    samples, rows = task.samples("train"), np.arange(batch)
    x, _ = task.batch(samples, rows)
    options: dict[str, Any] = {
        "method": "ho_sfl",
        "task": "synthetic",
        "clients": 1,
        "sampled": 1,
        "batch_size": batch,
        "probes": probes,
        "rounds": START_UP + rounds,
        "eval_every": 10**6,
        "client_threads": 1,
    }
    found: list[tuple[float, float, float]] = []

    def bare(strategy: SplitStrategy) -> None:
        with torch_threads(1), torch.no_grad():
            began = perf_counter()
            for _ in range(probes + 1):
                half(x)
            between = perf_counter()
            z = least.module(task.batch(samples, rows)[0])
            least.probe(task.batch(samples, rows)[0], z)
            ended = perf_counter()
        found.append((timed.seconds, between - began, ended - between))
        timed.seconds = 0.0

    with patch.dict(METHODS, ho_sfl=timed.method()):
        train(task, Plan.read(options), START_UP + rounds, bare)
    step, forwards, fewest = (median(each) for each in zip(*found[1 + START_UP :], strict=True))
    return step, forwards, fewest
