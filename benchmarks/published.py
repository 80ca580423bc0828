"""What the published HO-SFL vision runner does in a round, as a bare loop in a process of its own.

Written from the description of that runner (one shared model, no network, no messages), so that
its rate can be taken on the same machine in the same seconds as ours.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.beside import Worker, answer
from sfl_flower.tasks import load_task

__all__ = ["Beside", "PublishedRunner", "serve"]

MU, LR, DECAY = 1e-3, 1e-3, 1e-4


class PublishedRunner:
    """One shared client half and one server half, trained round by round.

    Parameters
    ----------
    task : str
        A ready-made task; its client half holds no train-mode BatchNorm.
    clients, batch_size, probes : int
        Clients per round, samples of each, and P.
    """

    def __init__(self, task: str, clients: int, batch_size: int, probes: int) -> None:
        loaded = load_task(task)
        halves = loaded.build(0)
        self.client, self.server = halves.client.eval(), halves.server.train()
        self._trained = [p for p in self.client.parameters() if p.requires_grad]
        self._client_step = torch.optim.AdamW(self._trained, lr=LR, weight_decay=DECAY)
        self._server_step = torch.optim.AdamW(self.server.parameters(), lr=LR, weight_decay=DECAY)
        samples = loaded.samples("train")
        starts = [index * batch_size % len(samples) for index in range(clients)]
        taken = [samples.take(slice(start, start + batch_size)) for start in starts]
        # Images in torch's default layout, as there, whatever layout the task gives its model.
        self.batches = [(loaded.batch(part, slice(None))[0].contiguous(), part.y) for part in taken]
        self.samples = sum(len(y) for _, y in self.batches)
        self._probes = probes
        self._random = torch.Generator()
        self._rounds = 0

    def round(self) -> None:
        """Run one round: anchors, server step, probes, averaged client step."""
        self._rounds += 1
        anchors = self.anchors()
        lams = self.server_round(anchors)
        seeds = [self._rounds * self._probes + index for index in range(self._probes)]
        scalars = self.probe_all(anchors, lams, seeds)
        self._client_step.zero_grad()
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._trained if p.grad is not None]
        for seed, scalar in zip(seeds, scalars.mean(dim=0).tolist(), strict=True):
            self._add(gradients, seed, scalar / (self._probes * MU))
        self._client_step.step()

    def anchors(self) -> list[Tensor]:
        """Return every client's smashed data."""
        with torch.no_grad():
            return [self.client(x) for x, _ in self.batches]

    def server_round(self, anchors: list[Tensor]) -> list[Tensor]:
        """Return every client's cut gradient; the server takes one step."""
        self._server_step.zero_grad()
        lams = []
        for z, (_, y) in zip(anchors, self.batches, strict=True):
            cut = z.clone().requires_grad_()
            loss = functional.cross_entropy(self.server(cut), y)
            (loss / len(self.batches)).backward()
            assert cut.grad is not None
            lams.append(cut.grad)
        self._server_step.step()
        return lams

    @torch.no_grad()
    def forwards(self) -> None:
        """Run the client forwards of a round, anchors and probes, and nothing else."""
        for x, _ in self.batches:
            for _ in range(self._probes + 1):
                self.client(x)

    @torch.no_grad()
    def probe_all(self, anchors: list[Tensor], lams: list[Tensor], seeds: list[int]) -> Tensor:
        """Return every client's scalars, shape [clients, probes]; the seeds are the directions'."""
        rows = []
        values = [parameter.data for parameter in self._trained]
        for z, lam, (x, _) in zip(anchors, lams, self.batches, strict=True):
            row = []
            for seed in seeds:
                self._add(values, seed, MU)
                row.append(torch.sum((self.client(x) - z) * lam))
                self._add(values, seed, -MU)
            rows.append(torch.stack(row))
        return torch.stack(rows)

    @torch.no_grad()
    def _add(self, to: list[Tensor], seed: int, scale: float) -> None:
        """Draw the seed's normal direction tensor by tensor and add it in place."""
        self._random.manual_seed(seed)
        for tensor in to:
            tensor.add_(torch.randn(tensor.shape, generator=self._random), alpha=scale)


def serve(pipe: Connection, task: str, clients: int, batch_size: int, probes: int) -> None:
    """Do what a pipe asks for, "JOB THREADS", and answer its seconds, until it says "end"."""
    runner = PublishedRunner(task, clients, batch_size, probes)
    jobs: dict[str, Callable[[], object]] = {
        "round": runner.round,
        "forwards": runner.forwards,
        "server": lambda: runner.server_round(smashed),
    }
    smashed = runner.anchors()
    runner.round()
    answer(pipe, jobs)


class Beside(Worker):
    """The runner in a process of its own: jobs "round", its "forwards" and its "server" part.

    Parameters
    ----------
    task, clients, batch_size, probes
        As for `PublishedRunner`.
    """

    def __init__(self, task: str, clients: int, batch_size: int, probes: int) -> None:
        super().__init__(serve, task, clients, batch_size, probes)
