"""Samples per second of whole rounds on a device, beside bare loops of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figure import Figure
from benchmarks.gpu.models import MODELS, Model
from benchmarks.gpu.runs import plan_on, waited
from benchmarks.trial import train
from sfl_flower.training.device import full_precision

__all__ = ["run"]

PROBES, MU, RATE = 4, 1e-3, 1e-3
START_UP = 2
"""First rounds, which are not counted: clients measure memory and operations in them."""


def run(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield samples per second of HO-SFL and SplitFed on each model, and ratios to bare loops."""
    rounds, turns = (2, 2) if small else (8, 8)
    for make in MODELS:
        model = make(small)
        plain = {
            "ho_sfl": _seconds(device, _HOSFL(model, device).step, turns),
            "splitfed_v2": _seconds(device, _Backprop(model, device).step, turns),
        }
        for method, bare in plain.items():
            took = _rounds(device, model, method, rounds)
            yield Figure(
                f"gpu_samples_per_second_{model.name}_{method}",
                model.batch / took,
                "samples/s",
                None,
                f"{model.what}; one client on {device.type}, rounds with all their messages and "
                f"replay, median of {rounds}"
                f"{f', P = {PROBES}' if method == 'ho_sfl' else ''}: {1e3 * took:.1f} ms; the bare "
                f"loop {1e3 * bare:.1f} ms, ratio {bare / took:.3f}",
            )


def _rounds(device: torch.device, model: Model, method: str, rounds: int) -> float:
    options: dict[str, Any] = {"probes": PROBES} if method == "ho_sfl" else {"local_steps": 1}
    plan = plan_on(
        device, model.task, method, clients=1, rounds=START_UP + rounds, batch_size=model.batch,
        client_lr=RATE, **options,
    )  # fmt: skip
    ends: list[float] = []

    def note(_: object) -> None:
        waited(device)
        ends.append(perf_counter())

    train(model.task, plan, START_UP + rounds, note)
    return median(b - a for a, b in zip(ends[START_UP:], ends[START_UP + 1 :], strict=False))


def _seconds(device: torch.device, step: Callable[[], object], turns: int) -> float:
    found = []
    for turn in range(turns + 1):
        waited(device)
        began = perf_counter()
        step()
        waited(device)
        if turn:
            found.append(perf_counter() - began)
    return median(found)


def drawer(device: torch.device) -> torch.Generator:
    """Return a generator whose numbers are drawn on a device."""
    return torch.Generator(device)


class _Loop:
    """Both halves on the device, a mini-batch, and the server's optimiser."""

    def __init__(self, model: Model, device: torch.device) -> None:
        halves = model.task.build(0)
        self.client, self.server = halves.client.to(device), halves.server.to(device)
        x, y = model.task.batch(model.task.samples("test"), slice(0, model.batch))
        self.x, self.y = x.to(device), y.to(device)
        self.trained = [p for p in self.client.parameters() if p.requires_grad]
        self.optimizer = _sgd(self.server)

    def answer(self, z: Tensor) -> Tensor:
        """Take the server's step and return λ."""
        cut = z.detach().requires_grad_()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.server(cut), self.y).backward()
        self.optimizer.step()
        assert cut.grad is not None
        return cut.grad


class _HOSFL(_Loop):
    """HO-SFL's computations, directions of torch's own generator."""

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__(model, device)
        self.draw = drawer(device)

    @torch.no_grad()
    def step(self) -> None:
        """Run an anchor, the server's step, the probes and the client's step."""
        with full_precision():
            z = self.client(self.x)
            with torch.enable_grad():
                lam = self.answer(z)
            found = []
            for seed in range(PROBES):
                self.add(seed, MU)
                found.append(((self.client(self.x) - z) * lam).sum())
                self.add(seed, -MU)
            for seed, scalar in enumerate(torch.stack(found).cpu().tolist()):
                self.add(seed, -RATE * scalar / (MU * PROBES))

    def add(self, seed: int, scale: float) -> None:
        """Add a normal direction to the client half, tensor by tensor."""
        self.draw.manual_seed(seed)
        for parameter in self.trained:
            u = torch.randn(parameter.shape, generator=self.draw, device=parameter.device)
            parameter.data.add_(u, alpha=scale)


class _Backprop(_Loop):
    """Plain split training: one forward and one backward of each half."""

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__(model, device)
        self.below = _sgd(self.client)

    def step(self) -> None:
        """Take one step of both halves."""
        with full_precision():
            z = self.client(self.x)
            self.below.zero_grad()
            z.backward(self.answer(z))
            self.below.step()


def _sgd(module: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=RATE, momentum=0.9)
