"""HO-SFL and HERON-SFL between the frozen client and their first-order twins, on Fashion-MNIST.

Every method, the control first, runs at each of its server rates and each seed; a method's accuracy
is the mean over seeds at its own best rate.  The rates are chosen on the same test images, for
every method alike.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.figure import Figure
from sfl_flower import simulate
from sfl_flower.options import check_choice

__all__ = ["add_arguments", "run"]

SHARED: Mapping[str, Any] = {
    "task.train_size": 12_000,
    "task.test_size": 2_000,
    "clients": 10,
    "sampled": 5,
    "batch_size": 32,
    "partition": "dirichlet",
    "alpha": 0.5,
    "server_optimizer": "sgd",
    "server_momentum": 0.9,
}
SERVER_RATES = (0.05, 0.1, 0.2)
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "frozen": ("frozen", {}),
    "first_order": ("splitfed_v2", {"client_lr": 0.05, "client_state": "kept"}),
    "ho_sfl": (
        "ho_sfl",
        {
            "probes": 256,
            "client_lr": 0.4,
            "client_lr_schedule": "cosine",
            "client_lr_warmup": 100,
        },
    ),
    "frozen_batch": ("frozen", {"server_steps": "batch"}),
    "cse_fsl": ("cse_fsl", {"head": "pooled", "client_lr": 0.3, "client_momentum": 0.0}),
    "heron": (
        "heron",
        {
            "head": "pooled",
            "head_trainer": "server",
            "head_lr": 0.02,
            "probes": 32,
            "client_lr": 0.1,
            "client_lr_schedule": "cosine",
            "client_lr_warmup": 0.05,
        },
    ),
}
"""Label -> method and the settings that are its own."""
RATES: Mapping[str, tuple[float, ...]] = {
    "frozen": SERVER_RATES,
    "first_order": SERVER_RATES,
    "ho_sfl": (0.05,),
    "frozen_batch": SERVER_RATES,
    "cse_fsl": SERVER_RATES,
    "heron": (0.05,),
}
"""Server rates tried.  A method counts at its best one, so trying fewer can only lower its figure:
the long runs are held to one."""
GAPS: Mapping[str, tuple[str, tuple[str, ...], str, float]] = {
    "gap_closed_ho_sfl": ("ho_sfl", ("frozen",), "first_order", 0.85),
    "gap_closed_heron": ("heron", ("frozen", "frozen_batch"), "cse_fsl", 0.6),
}
"""Figure -> method, its controls, of which the higher counts, its first-order twin, the target."""


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    label: str
    server_lr: float
    seed: int
    rounds: int

    def key(self) -> str:
        """Return everything that decides the run, as text."""
        return json.dumps({**self.__dict__, "settings": METHODS[self.label]}, sort_keys=True)


def _read(path: Path | None) -> dict[str, float]:
    """Return the accuracies of the runs in a file."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["run"]: line["accuracy"] for line in lines}


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--learning-rounds", type=int, default=2000, help="rounds of each run")
    parser.add_argument("--learning-seeds", type=int, default=3, help="seeds 0, 1, … of each run")
    parser.add_argument(
        "--learning-methods",
        default=",".join(METHODS),
        help=f"labels with commas between them, of: {', '.join(METHODS)}",
    )
    parser.add_argument("--learning-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--learning-out",
        type=Path,
        help="file of runs, one JSON line each: those in it are not run again, new ones are added",
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the accuracy of each method and the share of the gap that each of GAPS closes."""
    chosen = args.learning_methods.split(",")
    for label in chosen:
        check_choice("--learning-methods", label, METHODS)
    jobs = [
        Job(label, rate, seed, args.learning_rounds)
        for label in chosen
        for rate, seed in product(RATES[label], range(args.learning_seeds))
    ]
    done = _read(args.learning_out)
    left = [job for job in jobs if job.key() not in done]
    with ProcessPoolExecutor(args.learning_workers, mp_context=get_context("spawn")) as pool:
        for job, accuracy in zip(left, pool.map(train, left), strict=True):
            done[job.key()] = accuracy
            if args.learning_out:
                with args.learning_out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": job.key(), "accuracy": accuracy}) + "\n")
    found: dict[tuple[str, float], list[float]] = {}
    for job in jobs:
        found.setdefault((job.label, job.server_lr), []).append(done[job.key()])
    best: dict[str, float] = {}
    for label in chosen:
        rate = _best_rate(label, found)
        best[label] = mean(found[label, rate])
        yield Figure(f"accuracy_{label}", best[label], "share", None, _setting(label, rate, found))
    for name, (label, controls, twin, target) in GAPS.items():
        if {label, *controls, twin} <= best.keys():
            yield _gap(name, label, max(controls, key=best.__getitem__), twin, target, best)


def _gap(
    name: str, label: str, control: str, twin: str, target: float, best: Mapping[str, float]
) -> Figure:
    low, high, value = best[control], best[twin], best[label]
    return Figure(
        name,
        (value - low) / (high - low),
        "ratio",
        target,
        f"({label} - {control}) / ({twin} - {control}) = ({value:.4f} - {low:.4f}) / ({high:.4f} - "
        f"{low:.4f}), each at its own best server rate",
    )


def _best_rate(label: str, found: Mapping[tuple[str, float], list[float]]) -> float:
    return max(RATES[label], key=lambda rate: mean(found[label, rate]))


def _setting(label: str, rate: float, found: Mapping[tuple[str, float], list[float]]) -> str:
    method, settings = METHODS[label]
    runs = found[label, rate]
    spread = stdev(runs) if len(runs) > 1 else 0.0
    others = ", ".join(f"{other:g}: {mean(found[label, other]):.4f}" for other in RATES[label])
    own = ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"
    return (
        f"{method} ({own}), server rate {rate:g}, {len(runs)} seeds, standard deviation "
        f"{spread:.4f}; mean by server rate {others}"
    )


def train(job: Job) -> float:
    """Return the accuracy of the whole model after the last round."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    method, settings = METHODS[job.label]
    result = simulate(
        "fashion_mnist",
        method,
        backend="inline",
        rounds=job.rounds,
        seed=job.seed,
        server_lr=job.server_lr,
        eval_every=job.rounds,
        **SHARED,
        **settings,
    )
    return result.summary.metrics["accuracy"]
