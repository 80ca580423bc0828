"""Rounds of SplitFed V2, CSE-FSL and FSL-SAGE as bare loops in one process, without messages.

Written from the description of FSL-SAGE's code: clients one after another, each a local epoch with
an optimiser of its own that it keeps, one server half, plain means at the end of the round.  That
code also augments and loads its images in the loop, which is left out here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.beside import answer
from sfl_flower.task import SplitTask

__all__ = ["BareLoop", "serve"]

LR = 1e-3


class BareLoop:
    """One server half, and a client half and an auxiliary head per client.

    Parameters
    ----------
    task : SplitTask
        The model, its cut and its data.
    head : str
        The auxiliary head.
    clients, each, batch_size : int
        Clients, samples of each, samples of a mini-batch.
    period : int
        k: every k-th batch goes to the server in CSE-FSL and FSL-SAGE.
    quick : bool
        Whether to take the layout of images and the fused steps that the package takes: what is
        left is the arithmetic of a round.
    """

    def __init__(
        self,
        task: SplitTask,
        head: str,
        clients: int,
        each: int,
        batch_size: int,
        period: int,
        quick: bool = False,
    ) -> None:
        halves = task.build(0)
        self.server = halves.server.train()
        self.clients = [copy.deepcopy(halves.client).train() for _ in range(clients)]
        first = task.build_head(0, head)
        self.heads = [copy.deepcopy(first) for _ in range(clients)]
        self._server_step = _adam(self.server, quick)
        self._client_steps = [_adam(module, quick) for module in self.clients]
        self._head_steps = [_adam(module, quick) for module in self.heads]
        samples = task.samples("train")
        shares = [samples.take(slice(i * each, (i + 1) * each)) for i in range(clients)]
        images = [task.batch(part, slice(None))[0] for part in shares]
        if not quick:  # torch's default layout, as there, whatever layout the task gives its model
            images = [x.contiguous() for x in images]
        self.shares = [(x, part.y) for x, part in zip(images, shares, strict=True)]
        self._batch_size, self._period = batch_size, period
        self._random = torch.Generator().manual_seed(0)
        self.uploads = 0

    def _batches(self, client: int) -> list[tuple[Tensor, Tensor]]:
        x, y = self.shares[client]
        order = torch.randperm(len(y), generator=self._random)
        return [(x[rows], y[rows]) for rows in order.split(self._batch_size)]

    def splitfed_v2(self) -> None:
        """Run a round in which every batch goes up and its gradient comes down."""
        for client, module in enumerate(self.clients):
            for x, y in self._batches(client):
                z = module(x)
                lam = self._serve(z, y)
                self._client_steps[client].zero_grad()
                z.backward(lam)
                self._client_steps[client].step()
        _average(self.clients)

    def cse_fsl(self) -> None:
        """Run a round of local steps on client halves and heads."""
        for client, module in enumerate(self.clients):
            for number, (x, y) in enumerate(self._batches(client)):
                z = module(x)
                loss = functional.cross_entropy(self.heads[client](z), y)
                self._client_steps[client].zero_grad()
                self._head_steps[client].zero_grad()
                loss.backward()
                if number % self._period == 0:
                    self._serve(z, y)
                self._head_steps[client].step()
                self._client_steps[client].step()
        _average(self.clients)
        _average(self.heads)

    def fsl_sage(self) -> None:
        """Run a round, without alignment, along gradients that the heads estimate."""
        for client, module in enumerate(self.clients):
            for number, (x, y) in enumerate(self._batches(client)):
                z = module(x)
                if number % self._period == 0:
                    self._serve(z, y)
                cut = z.detach().requires_grad_()
                loss = functional.cross_entropy(self.heads[client](cut), y)
                (estimate,) = torch.autograd.grad(loss, cut)
                self._client_steps[client].zero_grad()
                z.backward(estimate)
                self._client_steps[client].step()
        _average(self.clients)

    def _serve(self, z: Tensor, y: Tensor) -> Tensor:
        """Take a server step on smashed data and return their gradient."""
        self.uploads += 1
        cut = z.detach().clone().requires_grad_()
        self._server_step.zero_grad()
        functional.cross_entropy(self.server(cut), y).backward()
        self._server_step.step()
        assert cut.grad is not None
        return cut.grad


def _adam(module: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=LR, fused=fused)


@torch.no_grad()
def _average(modules: list[nn.Module]) -> None:
    """Load the mean of all states into each module."""
    states = [module.state_dict() for module in modules]
    mean = {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(value.dtype)
        for name, value in states[0].items()
    }
    for module in modules:
        module.load_state_dict(mean)


def serve(pipe: Connection, task: SplitTask, head: str, *given: Any) -> None:
    """Answer a pipe: a job is the name of a method, and runs a round of it; else as `BareLoop`."""
    loop = BareLoop(task, head, *given)
    jobs: dict[str, Callable[[], object]] = {
        "splitfed_v2": loop.splitfed_v2,
        "cse_fsl": loop.cse_fsl,
        "fsl_sage": loop.fsl_sage,
    }
    answer(pipe, jobs)
