"""Labels: what a server reads of them where they are not sent, and what it costs to hide them.

A server that looks takes the gradient at a sample's features back through the tail, which it knows,
to that at its output, whose one negative number is the label's.  Randomised response bounds what
any reading can tell.  Beside each run stands the same with clients that never move.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from sfl_flower import simulate
from sfl_flower.data import generator
from sfl_flower.privacy.responses import kept_share, randomised
from sfl_flower.task.models import tailed
from sfl_flower.tasks import load_task

__all__ = ["add_arguments", "figures", "read_share"]

METHODS = ("u_shaped", "ho_sfl", "frozen")
TASK, CLASSES = "digits", 10
SAMPLES = 256
"""Samples whose labels are read."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    given = parser.add_argument
    given("--trust-labels-epsilons", default="0,6,4,2", help="of labels; 0: they are not hidden")
    given("--trust-labels-rounds", type=int, default=200, help="rounds of each run")
    given("--trust-labels-seeds", type=int, default=3, help="seeds 0, 1, … of each run")
    given("--trust-labels-workers", type=int, default=1, help="runs side by side")
    given("--trust-labels-out", type=Path, help="file of results: runs in it are not run again")


def job(method: str, epsilon: float, rounds: int, seed: int) -> Job:
    """Return one run, the server half stepping after each mini-batch."""
    own: dict[str, Any] = {"server_lr": 0.05} if method == "frozen" else {}
    common = {"rounds": rounds, "eval_every": rounds, "seed": seed, "clients": 10}
    return Job(TASK, method, {**common, "server_steps": "batch", "label_epsilon": epsilon, **own})


def train(job: Job) -> Metrics:
    """Return the accuracy of a run."""
    torch.set_num_threads(1)
    result = simulate(job.task, job.method, backend="inline", **job.options)
    return {"accuracy": result.summary.metrics["accuracy"]}


def read_share(epsilon: float, seed: int) -> float:
    """Return the share of labels that a server reads off the gradients at features.

    The model is as it is built; the tail's weights and the gradients are what the server is sent.
    """
    task = load_task(TASK)
    parts, halves = tailed(task, seed), task.build(seed)
    samples = task.samples("train")
    rows = generator("read labels", seed).permutation(len(samples))[:SAMPLES]
    x, y = task.batch(samples, rows)
    told = y.numpy()
    if epsilon:
        told = randomised(told, epsilon, CLASSES, generator("told labels", seed))
    with torch.no_grad():
        h = parts.body(halves.client(x))
    features = h.requires_grad_()
    loss = task.loss(parts.tail(features), torch.from_numpy(told))
    (gradient,) = torch.autograd.grad(loss, features)
    (weight,) = (p for name, p in parts.tail.named_parameters() if name.endswith("weight"))
    at_output = gradient.numpy() @ np.linalg.pinv(weight.detach().numpy())
    return float((at_output.argmin(axis=1) == y.numpy()).mean())


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield for each ε what is read of labels, and the accuracy of each method."""
    epsilons = [float(word) for word in args.trust_labels_epsilons.split(",")]
    seeds, rounds = range(args.trust_labels_seeds), args.trust_labels_rounds
    for epsilon in epsilons:
        bound = kept_share(epsilon, CLASSES) if epsilon else 1.0
        spread = math.sqrt(bound * (1 - bound) / (SAMPLES * len(seeds)))
        read = mean(read_share(epsilon, seed) for seed in seeds)
        yield Figure(
            f"labels_read_{epsilon:g}", read, "share", None,
            f"of {SAMPLES} labels of the digits, from gradients at the features of an untrained "
            f"tail, seeds {', '.join(map(str, seeds))}; {bound:.3f} stay as they are, give or take "
            f"{spread:.3f}", True,
        )  # fmt: skip
    asked = {
        (method, epsilon): [job(method, epsilon, rounds, seed) for seed in seeds]
        for epsilon in epsilons
        for method in METHODS
    }
    every = [each for jobs in asked.values() for each in jobs]
    done = run_jobs(every, args.trust_labels_workers, args.trust_labels_out, train)
    for (method, epsilon), jobs in asked.items():
        found = [done[each.key()]["accuracy"] for each in jobs]
        apart = f", sd {stdev(found):.4f}" if len(found) > 1 else ""
        yield Figure(
            f"labels_accuracy_{method}_{epsilon:g}", mean(found), "share", None,
            f"digits, 10 clients, {rounds} rounds of a mini-batch each, "
            f"seeds {', '.join(f'{value:.4f}' for value in found)}{apart}",
        )  # fmt: skip
