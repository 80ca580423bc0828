"""What a guide of the server is worth on Fashion-MNIST: how close it lies, and what it teaches.

Bare loops in the setting of `learn`, with the package's data, client half and guides, and exact
derivatives (μ → 0), so that the figures say what directions are worth.  Cosines are those with the
mean gradient of the round's clients.  Every row of accuracy has its own best client rate, chosen
with seed 0 on training images that are held back; the controls are the frozen client, and training
the client half on the server alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import learning
from benchmarks.figure import Figure
from sfl_flower.data import PartitionSpec
from sfl_flower.server.guide import GuideMaker, guide_maker
from sfl_flower.server.subspace import fitted
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.training.schedules import scheduled
from sfl_flower.zo import Guide, ParameterVector

__all__ = ["add_arguments", "run"]

SUBSETS = {"all": "all", "subspace": "subspace:4"}
SERVER_LR, MOMENTUM, CLIP = 0.05, 0.9, 1.0
Answer = tuple[np.ndarray, np.ndarray, float]


@dataclass(frozen=True)
class Row:
    """How the client half moves in a round.

    Attributes
    ----------
    words : str
        What it is.
    passes : int
        Client forwards a sample; first order's backprop counts as two more.
    rates : tuple of float
        Client rates that are tried.
    probes : int
        Ordinary probes of each client.
    guide : str
        Inputs of the guide, empty without.
    rest : float
        ρ.
    outright : str
        The vector that the server steps along by itself, a name of `Round.candidates`.
    exact : bool
        Whether the step follows the clients' own gradient.
    """

    words: str
    passes: int
    rates: tuple[float, ...] = (0.0,)
    probes: int = 0
    guide: str = ""
    rest: float = 1.0
    outright: str = ""
    exact: bool = False


ROWS: Mapping[str, Row] = {
    "frozen": Row("the client half stays", 1),
    "probes": Row("P = 4", 5, (0.06, 0.2), probes=4),
    "guided": Row("P = 3 and a guide, rest 1", 5, (0.06, 0.2), probes=3, guide="public"),
    "guided_rest": Row(
        "P = 3 and a guide, rest 0.1", 5, (0.1, 0.3), probes=3, guide="public", rest=0.1
    ),
    "guided_noise": Row(
        "P = 3 and a guide of noise, rest 0.1", 5, (0.1, 0.3), probes=3, guide="noise", rest=0.1
    ),
    "guided_p1": Row("P = 1 and a guide, rest 0.1", 3, (0.1, 0.3), 1, "public", 0.1),
    "outright": Row("control: q itself, no probe", 1, (0.1, 0.3), outright="position"),
    "outright_pseudo": Row(
        "control: public inputs with the server's own predictions", 1, (0.003, 0.03),
        outright="pseudo",
    ),
    "first_order": Row("the clients' gradient", 4, (0.1, 0.3), exact=True),
}  # fmt: skip


class Problem:
    """Data and halves of a run."""

    def __init__(self, subset: str, seed: int) -> None:
        self.task: SplitTask = load_task(
            "fashion_mnist", train_size=12_000, test_size=2_000, trained=SUBSETS[subset]
        )
        halves = fitted(self.task, seed)
        self.client: nn.Module = halves.client
        self.server: nn.Module = halves.server
        self.vector = ParameterVector(self.client)
        clients, alpha = learning.SHARED["clients"], learning.SHARED["alpha"]
        spec = PartitionSpec("dirichlet", clients, alpha, seed, validation=0.1)
        self.rows = self.task.client_rows(spec)
        self.x, self.y = self.task.batch(self.task.samples("train"), slice(None))
        self.test = self.task.batch(self.task.samples("test"), slice(None))
        held = np.setdiff1d(np.arange(len(self.x)), np.concatenate(self.rows))
        self.held = self.x[held], self.y[held]
        self.makers = {kind: self._maker(kind, seed) for kind in ("public", "noise")}
        self.public = self.task.batch(self.task.samples("public"), slice(None))[0]

    def _maker(self, kind: str, seed: int) -> GuideMaker:
        maker = guide_maker(kind, self.task, seed, self.client, self.vector)
        assert maker is not None
        return maker

    def back(self, x: Tensor, lam: Tensor) -> Tensor:
        """Return J(x)ᵀλ, flat."""
        parts = torch.autograd.grad(self.client(x), self.vector.parameters, lam)
        return torch.cat([part.reshape(-1) for part in parts])

    def accuracy(self, samples: tuple[Tensor, Tensor]) -> float:
        """Return the share of samples that are predicted right."""
        x, y = samples
        with torch.no_grad():
            return float((self.server(self.client(x)).argmax(1) == y).float().mean())


@dataclass
class Round:
    """What a round brought: gradients of the clients, and what the server knows."""

    problem: Problem
    gradients: Tensor
    answers: list[Answer]

    def candidates(self, kept: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        """Return the directions that the server could send; `kept` is what it remembers."""
        problem, z = self.problem, self._joined(0)

        def nearest(of: Tensor, among: Tensor) -> Tensor:
            return torch.cdist(of.flatten(1), among.flatten(1)).argmin(1)

        def public() -> Tensor:
            with torch.no_grad():
                found: Tensor = problem.client(problem.public)
            return found

        def sample() -> Tensor:
            lam = torch.zeros_like(public()).index_add_(0, nearest(z, public()), self._joined(1))
            return problem.back(problem.public, lam)

        def taken() -> Tensor:
            return problem.back(problem.public, self._joined(1)[nearest(public(), z)])

        def pseudo() -> Tensor:
            cut = public().requires_grad_()
            output = problem.server(cut)
            loss = cross_entropy(output, output.detach().argmax(1))
            return problem.back(problem.public, torch.autograd.grad(loss, cut)[0])

        def average() -> Tensor:
            old = kept.get("average", torch.zeros(problem.vector.size))
            kept["average"] = 0.9 * old + 0.1 * problem.makers["public"].gradient(0, self.answers)
            return kept["average"]

        return {
            "position": lambda: problem.makers["public"].gradient(0, self.answers),
            "position_noise": lambda: problem.makers["noise"].gradient(0, self.answers),
            "position_average": average,
            "sample": sample,
            "taken": taken,
            "pseudo": pseudo,
            "momentum": lambda: kept.get("momentum", torch.zeros(problem.vector.size)),
        }

    def _joined(self, index: int) -> Tensor:
        return torch.cat([torch.from_numpy(np.asarray(answer[index])) for answer in self.answers])


WORDS = {
    "position": "each position's λ to the nearest public position: what guide=public sends",
    "position_noise": "the same with inputs of noise: what guide=noise sends",
    "position_average": "exponential average of `position`, 0.9",
    "sample": "each sample's λ to the nearest public sample",
    "taken": "each public sample takes the λ of the nearest client sample",
    "pseudo": "λ of public samples with the server's own predictions as labels",
    "momentum": "momentum of the steps before, 0.9",
    "signs": "`position`, its signs alone",
    "tensors": "`position`, its signs and a factor a tensor",
    "rows": "`position`, its signs and a factor a row",
}


class Loop:
    """One run of a row."""

    def __init__(self, row: Row, subset: str, seed: int, rate: float, rounds: int) -> None:
        self.row, self.rate, self.rounds = row, rate, rounds
        self.problem = Problem(subset, seed)
        self._draw = np.random.default_rng(seed)
        self._signs = torch.Generator().manual_seed(seed)
        parameters = list(self.problem.server.parameters())
        self._optimizer = torch.optim.SGD(parameters, SERVER_LR, MOMENTUM)
        self.kept: dict[str, Tensor] = {}
        self.cosines: dict[str, list[tuple[float, float]]] = {}

    def train(self, measure: bool = False) -> None:
        """Run all rounds; `measure` fills `cosines` of every tenth."""
        vector = self.problem.vector
        for number in range(1, self.rounds + 1):
            found = self._round()
            if measure and number % 10 == 0:
                self._measure(found)
            step = self._step(found)
            self.kept["momentum"] = 0.9 * self.kept.get("momentum", 0.0 * step) + step
            rate = scheduled("cosine", self.rate, number, self.rounds, 0.05)
            vector.load(vector.anchor - rate * step)

    def _round(self) -> Round:
        """Run the anchors, and the server half's steps after each of them."""
        problem, options = self.problem, learning.SHARED
        gradients, answers = [], []
        for client in self._draw.choice(options["clients"], options["sampled"], replace=False):
            mine = problem.rows[client]
            rows = self._draw.choice(mine, min(len(mine), options["batch_size"]), replace=False)
            z = problem.client(problem.x[rows])
            cut = z.detach().requires_grad_()
            loss = cross_entropy(problem.server(cut), problem.y[rows])
            lam, *own = torch.autograd.grad(loss, [cut, *problem.server.parameters()])
            parts = torch.autograd.grad(z, problem.vector.parameters, lam)
            gradients.append(torch.cat([part.reshape(-1) for part in parts]))
            answers.append((cut.detach().numpy(), lam.numpy(), 1.0))
            for parameter, gradient in zip(problem.server.parameters(), own, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
        return Round(problem, torch.stack(gradients), answers)

    def _measure(self, found: Round) -> None:
        target = found.gradients.mean(0)
        for name, make in found.candidates(self.kept).items():
            q = make()
            guide = Guide.towards(q.numpy(), self.problem.vector.shapes)
            if guide is not None:
                sent = _elements(guide, self.problem.vector)
                pair = tuple(float(torch.cosine_similarity(target, v, dim=0)) for v in (q, sent))
                self.cosines.setdefault(name, []).append((pair[0], pair[1]))
        for name, v in _forms(found.candidates(self.kept)["position"](), self.problem.vector):
            value = float(torch.cosine_similarity(target, v, dim=0))
            self.cosines.setdefault(name, []).append((value, value))

    def _step(self, found: Round) -> Tensor:
        row, target = self.row, found.gradients.mean(0)
        if row.exact:
            return _held(target)
        if row.outright:
            return _held(found.candidates(self.kept)[row.outright]())
        if not row.probes:
            return torch.zeros_like(target)
        guide = self.problem.makers[row.guide].guide(0, found.answers) if row.guide else None
        unit = None
        if guide is not None:
            a = _elements(guide, self.problem.vector)
            unit = a / a.norm()
        step, along = torch.zeros_like(target), 0.0
        for gradient in found.gradients:
            drawn = torch.randint(0, 2, (row.probes, len(target)), generator=self._signs)
            u = 2.0 * drawn - 1.0
            v = u @ gradient
            share = min(1.0, CLIP / float(v.square().mean().sqrt()))
            step += share * (v @ u) / row.probes / len(found.gradients)
            if unit is not None:
                told = share * float(gradient @ unit)
                along += min(max(told, -CLIP), CLIP) / len(found.gradients)
        if unit is not None:
            step = row.rest * (step - unit * (unit @ step)) + along * unit
        return step


def _forms(q: Tensor, vector: ParameterVector) -> Iterator[tuple[str, Tensor]]:
    """Yield coarser forms of a vector than a guide is."""
    yield "signs", q.sign()
    tensors = vector.named(q).values()
    yield "tensors", torch.cat([(t.sign() * t.abs().mean()).flatten() for t in tensors])
    rows = [t.flatten(1) if t.dim() > 1 else t[None] for t in tensors]
    yield "rows", torch.cat([(t.sign() * t.abs().mean(1, keepdim=True)).flatten() for t in rows])


def _held(step: Tensor) -> Tensor:
    return step * min(1.0, CLIP / max(float(step.norm()), 1e-30))


def _elements(guide: Guide, vector: ParameterVector) -> Tensor:
    return vector.directions(bytes(16), "rademacher").along(guide).values()


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--guides-rounds", type=int, default=500, help="rounds of each run")
    parser.add_argument("--guides-cosines-only", action="store_true", help="no accuracies")
    parser.add_argument("--guides-seeds", type=int, default=2, help="seeds 0, 1, … of each row")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the cosine of each candidate, then the accuracy of each row."""
    rounds, seeds = args.guides_rounds, range(args.guides_seeds)
    for subset in SUBSETS:
        loop = Loop(ROWS["probes"], subset, 0, ROWS["probes"].rates[1], rounds)
        loop.train(measure=True)
        for name, pairs in loop.cosines.items():
            q, sent = (mean(column) for column in zip(*pairs, strict=True))
            words = f"{WORDS[name]}; q itself {q:.3f}; {SUBSETS[subset]}"
            yield Figure(f"guide_cosine_{subset}_{name}", sent, "cosine", None, words)
    for subset in () if args.guides_cosines_only else SUBSETS:
        for label, row in ROWS.items():
            yield _accuracy(label, row, subset, seeds, rounds)


def _accuracy(label: str, row: Row, subset: str, seeds: range, rounds: int) -> Figure:
    runs: dict[tuple[float, int], Any] = {}

    def trained(rate: float, seed: int) -> Problem:
        if (rate, seed) not in runs:
            loop = Loop(row, subset, seed, rate, rounds)
            loop.train()
            runs[rate, seed] = loop.problem
        found: Problem = runs[rate, seed]
        return found

    held = {rate: trained(rate, 0).accuracy(trained(rate, 0).held) for rate in row.rates}
    best = max(held, key=held.__getitem__)
    found = [trained(best, seed).accuracy(trained(best, seed).test) for seed in seeds]
    grid = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in held.items())
    return Figure(
        f"guide_accuracy_{subset}_{label}",
        mean(found),
        "share",
        None,
        f"{row.words}, {row.passes} passes a sample, {SUBSETS[subset]}, {rounds} rounds; seeds "
        f"{', '.join(f'{value:.4f}' for value in found)}; client rate {best:g}, of seed 0 on held "
        f"back images: {grid}",
    )
