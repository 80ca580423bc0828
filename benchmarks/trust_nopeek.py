"""What NoPeek's term keeps from an attacker with a decoder, and what it costs in accuracy.

HO-SFL trains with several weights of the term beside 0.  The attacker knows the client half and has
images like the clients' (half of the test set): it trains the decoder of `sfl attack` from smashed
data back to images, and is measured on what clients send of their own.  Beside it stand the client
half that was never trained, and the same run whose client half has the gradient of loss and term by
backprop in place of probes (the published NoPeek): what more probes come to.  Accuracy is that of
the other half of the test set, and a weight is chosen by that of the attacker's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from sfl_flower import RunConfig, simulate
from sfl_flower.attacks.inversion import fit_decoder
from sfl_flower.data import batch_indices
from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.options import check_choice
from sfl_flower.privacy.dependence import Dependence
from sfl_flower.server.roster import Member
from sfl_flower.server.trainer import Trainer
from sfl_flower.server.turns import turns
from sfl_flower.split import Halves
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.wire.encodings import encoding_of

__all__ = ["add_arguments", "decoder_error", "figures"]

FIRST_ORDER, FROZEN = "first_order", "frozen"
RAISED, POINTS = 1.5, 1.0
"""The attacker's error over that without the term, and points of accuracy that it may cost."""


@dataclass(frozen=True)
class Bed:
    """What is trained, where it is cut, and how."""

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cut: str = ""

    def load(self) -> SplitTask:
        """Return the task, cut there."""
        task = load_task(self.task, **self.options)
        return replace(task, cut=self.cut) if self.cut else task


BEDS: Mapping[str, Bed] = {
    "digits": Bed("digits"),
    "digits_wide": Bed("digits", {"model": "conv"}, "pool2"),
    "fashion_mnist": Bed("fashion_mnist", {"train_size": 8000, "test_size": 4000}),
}
"""Name -> what it is; smashed data of ``digits`` are 8 numbers, of ``digits_wide`` 128."""
RUN: Mapping[str, Any] = {"clients": 5, "batch_size": 32, "client_lr": 0.3}
PROBES, COMPARED = 32, 128
"""Of a mini-batch; samples whose distance correlation is said."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    given = parser.add_argument
    given("--trust-nopeek-beds", default="digits", help=f"tasks, of: {', '.join(BEDS)}")
    given("--trust-nopeek-weights", default="0.3,1", help="weights of the term, beside 0")
    given("--trust-nopeek-rounds", type=int, default=150, help="rounds of each run")
    given("--trust-nopeek-seeds", type=int, default=2, help="seeds 0, 1, … of each run")
    given("--trust-nopeek-smashed", default="float32", help="how smashed data travel")
    given("--trust-nopeek-epochs", type=int, default=100, help="epochs of the attacker's decoder")
    given("--trust-nopeek-workers", type=int, default=1, help="runs side by side")
    given("--trust-nopeek-out", type=Path, help="file of results: runs in it are not run again")


def job(
    bed: str, method: str, weight: float, seed: int, rounds: int, epochs: int, smashed: str
) -> Job:
    """Return one run, of ``ho_sfl``, `FIRST_ORDER` or `FROZEN`, with a weight of the term."""
    own = {"seed": seed, "rounds": rounds, "decoder": epochs, "smashed": smashed}
    return Job(bed, method, {**RUN, **own, "nopeek": weight})


def train(job: Job) -> Metrics:
    """Train, attack, and return accuracies, the attacker's error and the distance correlation."""
    torch.set_num_threads(1)
    options, task = dict(job.options), BEDS[job.task].load()
    epochs, seed = options.pop("decoder"), RunConfig(seed=options["seed"]).model_seed
    x, y = task.batch(task.samples("test"), slice(None))
    halves = task.build(seed)
    if job.method == FIRST_ORDER:
        by_backprop(task, halves, options)
    else:
        if job.method == FROZEN:
            options = {k: v for k, v in options.items() if k not in ("client_lr", "nopeek")}
        else:
            options["probes"] = PROBES
        result = simulate(task, job.method, backend="inline", eval_every=10**6, **options)
        for half in (halves.client, halves.server):
            half.load_state_dict({name: result.model[name] for name in half.state_dict()})
    sent = Sent(halves.client, options["smashed"])
    return measured(task, sent, halves.server, (x[::2], y[::2]), (x[1::2], y[1::2]), epochs)


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
    auxiliary: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    epochs: int,
) -> Metrics:
    """Return what is said of a pair of halves; see `train`."""
    x, y = task.batch(task.samples("train"), slice(0, 2000))

    def accuracy(x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return 100 * float((server(client(x)).argmax(1) == y).float().mean())

    with torch.no_grad():
        dcor = Dependence(x[:COMPARED]).dcor(client.client(x[:COMPARED]))
    return {
        "accuracy": accuracy(*held),
        "chosen_by": accuracy(*auxiliary),
        "dcor": float(dcor),
        "mse": decoder_error(client, auxiliary, (x, y), task.classes, epochs),
        "guess": float(mse_loss(auxiliary[0].mean(0).expand_as(x), x)),
    }


def decoder_error(
    client: nn.Module,
    auxiliary: tuple[Tensor, Tensor],
    victims: tuple[Tensor, Tensor],
    classes: int,
    epochs: int,
) -> float:
    """Return the mean squared error a pixel of `fit_decoder`, which never saw the images.

    Parameters
    ----------
    client : nn.Module
        The client half, which the attacker knows, and maybe what becomes of what it sends.
    auxiliary : (Tensor, Tensor)
        Images of the attacker in 0 .. 1, shape [n, ...], and their labels.
    victims : (Tensor, Tensor)
        Images of clients in 0 .. 1, whose smashed data it gets, and their labels.
    classes : int
        Labels that there are.
    epochs : int
        Of its training.
    """
    with torch.no_grad():
        z, seen = client(auxiliary[0]), client(victims[0])
    decoder = fit_decoder(lambda _: z, auxiliary[1], auxiliary[0], classes, epochs, "nopeek")
    with torch.no_grad():
        return float(mse_loss(decoder(seen, victims[1]).clamp(0, 1), victims[0]))


def by_backprop(task: SplitTask, halves: Halves, options: Mapping[str, Any]) -> None:
    """Train both halves as HO-SFL does, with gradients by backprop in place of scalars of probes.

    The mini-batches, their order, the server half's steps, λ, the clip of each client's gradient,
    the mean over clients and the rate are those of the run with these options.

    Parameters
    ----------
    task : SplitTask
        What is learned.
    halves : Halves
        Of its model; they are trained in place.
    options : Mapping[str, Any]
        Of a run of ``ho_sfl`` with plain SGD on clients, one mini-batch of a client in a round.
    """
    config, _, settings, _ = read_options({"method": "ho_sfl", "task": task.name, **options})
    assert isinstance(settings, HOSFLSettings) and settings.client_optimizer == "sgd"
    spec = config.partition_spec()
    assert spec is not None
    shares, samples = task.client_rows(spec), task.samples("train")
    members = [Member(partition, partition) for partition in range(config.clients)]
    sent, parameters = Sent(halves.client, config.smashed), list(halves.client.parameters())
    server = Trainer(halves.server, task.loss, task.classes, config)
    for round in range(1, config.rounds + 1):
        server.begin(round)
        total = torch.zeros(sum(p.numel() for p in parameters))
        for member in turns(config.seed, round, members):
            key, rows = config.client_key(member.partition), shares[member.partition]
            chosen = batch_indices(key, round, 0, len(rows), config.batch_size)
            x, y = task.training_batch(samples, rows[chosen], key, round, 0)
            with torch.no_grad():
                arrived = sent(x).numpy()
            found = server.gradients(arrived, y.numpy(), (round, member.partition, 0))
            server.add([found], 1.0)
            server.step()
            z = halves.client(x)
            told = (z * torch.from_numpy(np.array(found.lam))).sum()
            if settings.nopeek:
                told = told + settings.nopeek * Dependence(x).dcor(z).to(z.dtype)
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(told, parameters)])
            norm = float(gradient.norm())
            total += gradient * min(1.0, (settings.clip_norm or math.inf) / max(norm, 1e-30))
        rate = settings.client_rate(round, config.rounds)
        with torch.no_grad():
            steps = (rate / len(members) * total).split([p.numel() for p in parameters])
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.sub_(step.reshape(parameter.shape))


def weights_of(text: str) -> dict[str, float]:
    """Return the weights of the term by the names that they have in figures, ascending.

    Raises
    ------
    ConfigError
        If one is no number above 0.
    """
    found = {}
    for word in text.split(","):
        try:
            weight = float(word)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"--trust-nopeek-weights is '{text}'; it must be numbers above 0 with commas "
                "between, as 0.3,1."
            )
        name = np.format_float_positional(weight, trim="-")
        found[name.replace(".", "_")] = weight
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield for each weight the attacker's error over that without the term, then the one to take.

    Raises
    ------
    ConfigError
        If a task is none of `BEDS`, a weight no number above 0, or a count below 1.
    """
    beds, weights = args.trust_nopeek_beds.split(","), weights_of(args.trust_nopeek_weights)
    for bed in beds:
        check_choice("--trust-nopeek-beds", bed, BEDS)
    for name in ("rounds", "seeds", "epochs", "workers"):
        if vars(args)[f"trust_nopeek_{name}"] < 1:
            raise ConfigError(
                f"--trust-nopeek-{name} is {vars(args)[f'trust_nopeek_{name}']}; it must be at "
                "least 1."
            )
    encoding_of(args.trust_nopeek_smashed)
    timed = (args.trust_nopeek_rounds, args.trust_nopeek_epochs, args.trust_nopeek_smashed)

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
            rows: dict[float, Metrics] = {0.0: plain}
            for name, weight in weights.items():
                own = rows[weight] = found(bed, method, weight)
                lost = plain["accuracy"] - own["accuracy"]
                said = f"{_said(own)}; {lost:+.1f} points lost"
                ratio = own["mse"] / plain["mse"]
                yield Figure(f"nopeek_ratio_{bed}_{method}_{name}", ratio, "ratio", None, said)
            yield _taken(f"nopeek_ratio_{bed}_{method}", rows)


def _taken(name: str, rows: Mapping[float, Metrics]) -> Figure:
    """Return the figure of the largest weight that costs little on the attacker's images."""
    plain = rows[0.0]
    weight = max(w for w, own in rows.items() if plain["chosen_by"] - own["chosen_by"] <= POINTS)
    own = rows[weight]
    ratio, lost = own["mse"] / plain["mse"], plain["accuracy"] - own["accuracy"]
    said = (
        f"weight {weight:g}, the largest of {', '.join(f'{w:g}' for w in rows)} that costs at most "
        f"{POINTS:g} point on the attacker's half of the test set; {lost:+.1f} points on the other"
    )
    return Figure(name, ratio, "ratio", RAISED, said)


def _said(found: Metrics) -> str:
    """Return accuracy, error and distance correlation in words."""
    return (
        f"attacker's MSE {found['mse']:.4f} ({found['guess']:.4f} by the mean image), accuracy "
        f"{found['accuracy']:.1f}, dcor {found['dcor']:.3f} over {COMPARED} samples"
    )
