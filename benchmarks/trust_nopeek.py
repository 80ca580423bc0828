"""What NoPeek's term keeps from an attacker with a decoder, and what it costs in accuracy.

HO-SFL trains with several weights of the term beside 0.  The attacker knows the client half and has
images like the clients' (half of the test set): it trains a small decoder from smashed data back to
images, and is measured on what clients send of their own.  Beside it stand the client half that was
never trained, and the term by backprop in a bare loop with as many samples a step (the published
NoPeek): what more probes could come to.  Accuracy is that of the other half of the test set.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from sfl_flower import simulate
from sfl_flower.data import generator, seeded_torch
from sfl_flower.options import check_choice
from sfl_flower.privacy.dependence import Dependence
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.wire.encodings import encoding_of

__all__ = ["add_arguments", "decoder_error", "figures"]

FIRST_ORDER, FROZEN = "first_order", "frozen"
RAISED, POINTS = 1.5, 1.0
"""The attacker's error over that without the term, and points of accuracy that it may cost."""
BEDS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"clients": 5, "batch_size": 32, "client_lr": 0.3},
    "fashion_mnist": {
        "clients": 5,
        "batch_size": 32,
        "client_lr": 0.3,
        "task.train_size": 8000,
        "task.test_size": 4000,
    },
}
"""By task: the settings of its runs."""
PROBES, HIDDEN, COMPARED = 32, 256, 128
"""Of a mini-batch; units of the decoder; samples whose distance correlation is said."""
DAMPED = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of a linear decoder; the best is found on a fifth of the attacker's images."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    given = parser.add_argument
    given("--trust-nopeek-beds", default="digits", help=f"tasks, of: {', '.join(BEDS)}")
    given("--trust-nopeek-weights", default="0.3,1", help="weights of the term, beside 0")
    given("--trust-nopeek-rounds", type=int, default=150, help="rounds of each run")
    given("--trust-nopeek-seeds", type=int, default=2, help="seeds 0, 1, … of each run")
    given("--trust-nopeek-smashed", default="float32", help="how smashed data travel")
    given("--trust-nopeek-steps", type=int, default=1500, help="steps of the attacker's decoder")
    given("--trust-nopeek-workers", type=int, default=1, help="runs side by side")
    given("--trust-nopeek-out", type=Path, help="file of results: runs in it are not run again")


def job(
    bed: str, method: str, weight: float, seed: int, rounds: int, steps: int, smashed: str
) -> Job:
    """Return one run, of ``ho_sfl``, `FIRST_ORDER` or `FROZEN`, with a weight of the term."""
    own = {"seed": seed, "rounds": rounds, "decoder": steps, "smashed": smashed}
    return Job(bed, method, {**BEDS[bed], **own, "nopeek": weight})


def train(job: Job) -> Metrics:
    """Train, attack, and return accuracy, the attacker's error and the distance correlation."""
    torch.set_num_threads(1)
    options = dict(job.options)
    named = {k.removeprefix("task."): options.pop(k) for k in job.options if k.startswith("task.")}
    task, steps, seed = load_task(job.task, **named), options.pop("decoder"), options["seed"]
    x, y = task.batch(task.samples("test"), slice(None))
    auxiliary, held = x[::2], (x[1::2], y[1::2])
    halves = task.build(seed)
    if job.method == FIRST_ORDER:
        _by_backprop(task, halves.client, halves.server, options)
    else:
        weight = options.pop("nopeek")
        own = {} if job.method == FROZEN else {"nopeek": weight, "probes": PROBES}
        if job.method == FROZEN:
            options.pop("client_lr")
        result = simulate(task, job.method, backend="inline", eval_every=10**6, **options, **own)
        for half in (halves.client, halves.server):
            half.load_state_dict({name: result.model[name] for name in half.state_dict()})
    sent = Sent(halves.client, options["smashed"])
    return measured(task, sent, halves.server, auxiliary, held, steps)


class Sent(nn.Module):
    """A client half, and the way its smashed data travel.

    Parameters
    ----------
    client : nn.Module
        The client half.
    smashed : str
        The name of an encoding.
    """

    def __init__(self, client: nn.Module, smashed: str) -> None:
        super().__init__()
        self.client, self._encoding = client, encoding_of(smashed)

    def forward(self, x: Tensor) -> Tensor:
        """Return what arrives; its derivative is that of what was sent."""
        z: Tensor = self.client(x)
        parts = self._encoding.encode(z.detach().numpy(), "smashed")
        arrived = torch.from_numpy(np.array(self._encoding.decode(parts)))
        return z + (arrived - z.detach())


def measured(
    task: SplitTask,
    client: Sent,
    server: nn.Module,
    auxiliary: Tensor,
    held: tuple[Tensor, Tensor],
    steps: int,
) -> Metrics:
    """Return what is said of a pair of halves; see `train`."""
    x = task.batch(task.samples("train"), slice(0, 2000))[0]
    with torch.no_grad():
        right = server(client(held[0])).argmax(1) == held[1]
        dcor = Dependence(x[:COMPARED]).dcor(client.client(x[:COMPARED]))
    return {
        "accuracy": 100 * float(right.float().mean()),
        "dcor": float(dcor),
        "mse": decoder_error(client, auxiliary, x, steps),
    }


def decoder_error(client: nn.Module, auxiliary: Tensor, x: Tensor, steps: int) -> float:
    """Return the mean squared error a pixel of a decoder that never saw the images.

    It is the lower one of a linear decoder's, by least squares, and of a small network's.

    Parameters
    ----------
    client : nn.Module
        The client half, which the attacker knows, and maybe what becomes of what it sends.
    auxiliary : Tensor
        Images of the attacker, shape [n, ...].
    x : Tensor
        Images of clients, whose smashed data it gets.
    steps : int
        Of its training.
    """
    with torch.no_grad():
        z, seen = (client(part).flatten(1) for part in (auxiliary, x))
    middle, spread = z.mean(0), z.std(0) + 1e-3 * z.std() + 1e-12
    z, seen = (z - middle) / spread, (seen - middle) / spread
    wanted, truth = auxiliary.flatten(1), x.flatten(1)
    fifth = len(z) // 5
    weights = [_linear(z[fifth:], wanted[fifth:], part) for part in DAMPED]
    errors = [float(functional.mse_loss(_read(z[:fifth], w), wanted[:fifth])) for w in weights]
    linear = float(functional.mse_loss(_read(seen, weights[errors.index(min(errors))]), truth))
    with seeded_torch("decoder"):
        decoder = nn.Sequential(
            nn.Linear(z.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, wanted.shape[1])
        )
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    draws = generator("decoder")
    for _ in range(steps):
        rows = torch.from_numpy(draws.integers(0, len(z), 128))
        optimizer.zero_grad()
        functional.mse_loss(decoder(z[rows]), wanted[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return min(linear, float(functional.mse_loss(decoder(seen), truth)))


def _linear(z: Tensor, wanted: Tensor, damping: float) -> Tensor:
    """Return the weights of least squares from smashed data and 1, damped by a share of them."""
    full = functional.pad(z, (0, 1), value=1.0).double()
    products = full.T @ full
    products += damping * len(z) * torch.eye(len(products), dtype=torch.float64)
    found: Tensor = torch.linalg.solve(products, full.T @ wanted.double())
    return found


def _read(z: Tensor, weights: Tensor) -> Tensor:
    return (functional.pad(z, (0, 1), value=1.0).double() @ weights).float()


def _by_backprop(
    task: SplitTask, client: nn.Module, server: nn.Module, options: Mapping[str, Any]
) -> None:
    """Train both halves on the loss and the term by backprop, a step a mini-batch of the run's."""
    x, y = task.batch(task.samples("train"), slice(None))
    sent = Sent(client, options["smashed"])
    parameters = [*client.parameters(), *server.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    steps = options["rounds"] * options["clients"]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for rows in islice(_batches(len(y), options["batch_size"], options["seed"]), steps):
        loss = functional.cross_entropy(server(sent(x[rows])), y[rows])
        if options["nopeek"]:
            dcor = Dependence(x[rows]).dcor(client(x[rows]))
            loss = loss + options["nopeek"] * dcor.to(loss.dtype)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield rows of mini-batches, pass after pass, in an order drawn anew for each."""
    draws = generator("first order", seed)
    while True:
        order = torch.from_numpy(draws.permutation(count).astype(np.int64))
        yield from order[: count - count % size].split(size)


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield for each weight the attacker's error over that without the term.

    Raises
    ------
    ConfigError
        If a task is none of `BEDS`.
    """
    beds, weights = args.trust_nopeek_beds.split(","), args.trust_nopeek_weights.split(",")
    for bed in beds:
        check_choice("--trust-nopeek-beds", bed, BEDS)
    timed = (args.trust_nopeek_rounds, args.trust_nopeek_steps, args.trust_nopeek_smashed)

    def found(bed: str, method: str, weight: float) -> Metrics:
        jobs = [job(bed, method, weight, seed, *timed) for seed in range(args.trust_nopeek_seeds)]
        done = run_jobs(jobs, args.trust_nopeek_workers, args.trust_nopeek_out, train)
        own = [done[each.key()] for each in jobs]
        return {name: mean(each[name] for each in own) for name in own[0]}

    for bed in beds:
        frozen = found(bed, FROZEN, 0.0)
        yield Figure(f"nopeek_mse_{bed}_frozen", frozen["mse"], "MSE", None, _said(frozen))
        for method in ("ho_sfl", FIRST_ORDER):
            plain = found(bed, method, 0.0)
            yield Figure(f"nopeek_mse_{bed}_{method}", plain["mse"], "MSE", None, _said(plain))
            best = 1.0
            for weight in weights:
                own = found(bed, method, float(weight))
                ratio, lost = own["mse"] / plain["mse"], plain["accuracy"] - own["accuracy"]
                name = f"nopeek_ratio_{bed}_{method}_{weight.replace('.', '_')}"
                said = f"{_said(own)}; {lost:+.1f} points lost"
                yield Figure(name, ratio, "ratio", None, said)
                best = max(best, ratio) if lost <= POINTS else best
            said = (
                f"the highest that costs at most {POINTS:g} point, of weights {', '.join(weights)}"
            )
            yield Figure(f"nopeek_ratio_{bed}_{method}", best, "ratio", RAISED, said)


def _said(found: Metrics) -> str:
    """Return accuracy, error and distance correlation in words."""
    return (
        f"attacker's MSE {found['mse']:.4f}, accuracy {found['accuracy']:.1f}, "
        f"dcor {found['dcor']:.3f} over {COMPARED} samples"
    )
