"""Which settings HO-SFL should have by default: tried on validation splits of three small tasks.

Every candidate runs on every task with every seed, at the run's default server rate. What counts is
the accuracy on training samples that are held back, the mean over tasks and seeds; the test sets
are looked at for the chosen candidate and the methods beside it alone.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.figure import Figure
from sfl_flower import Samples, SplitTask, simulate
from sfl_flower.data import generator

__all__ = ["add_arguments", "run"]

SHARED: Mapping[str, Any] = {"clients": 10, "rounds": 60, "eval_every": 60, "validation": 0.1}
TASKS: Mapping[str, Mapping[str, Any]] = {
    "digits": {},
    "fashion_mnist": {"task.train_size": 10_000, "task.test_size": 2_000},
    "clusters": {},
}
"""Task -> its options."""
BESIDE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "frozen, a step a round": ("frozen", {"server_steps": "round"}),
    "frozen, a step a batch": ("frozen", {"server_steps": "batch"}),
    "splitfed_v2": ("splitfed_v2", {}),
}
FALLING: Mapping[str, Any] = {"client_lr_schedule": "cosine", "client_lr_warmup": 0.05}
CANDIDATES: tuple[Mapping[str, Any], ...] = (
    {"server_steps": "round", "probes": 4, "client_lr": 0.02, "clip_norm": 0.0},
    {"server_steps": "batch", "probes": 4, "client_lr": 0.02, "clip_norm": 0.0},
    *(
        {"server_steps": "batch", "probes": probes, "client_lr": lr, "clip_norm": clip}
        for probes, rates in ((4, (0.05, 0.1)), (8, (0.05, 0.1, 0.2)), (16, (0.1, 0.2)))
        for lr, clip in product(rates, (0.0, 1.0))
    ),
    *(
        {"server_steps": "batch", "probes": 8, "client_lr": lr, "clip_norm": 1.0, **FALLING}
        for lr in (0.1, 0.2)
    ),
)
"""The settings that are tried."""

FEATURES, CLASSES, EACH = 64, 10, 3


def _clusters(split: str, count: int) -> Samples:
    centres = generator("clusters").standard_normal((CLASSES * EACH, FEATURES)) * 0.5
    draw = generator("clusters", split)
    chosen = draw.integers(CLASSES * EACH, size=count)
    x = centres[chosen] + draw.standard_normal((count, FEATURES))
    return Samples(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(chosen % CLASSES))


def _clusters_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )


def clusters() -> SplitTask:
    """Return 4 000 points in 64 dimensions, ten classes of three clusters each."""
    return SplitTask(
        "clusters",
        _clusters_model,
        "1",
        train=partial(_clusters, "train", 4_000),
        test=partial(_clusters, "test", 2_000),
        classes=CLASSES,
        token="clusters",
    )


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--defaults-seeds", type=int, default=2, help="seeds 0, 1, … of each run")
    parser.add_argument(
        "--defaults-out",
        type=Path,
        help="file of runs, one JSON line each: those in it are not run again, new ones are added",
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the mean validation accuracy of each candidate, then what the test sets say."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    kept = _Kept(args.defaults_out, range(args.defaults_seeds))
    scores = []
    for number, candidate in enumerate(CANDIDATES):
        by_task = {task: kept.mean(task, "ho_sfl", candidate, "validation_") for task in TASKS}
        scores.append(mean(by_task.values()))
        yield Figure(f"validation_{number}", scores[-1], "share", None, _text(candidate, by_task))
    best = CANDIDATES[max(range(len(CANDIDATES)), key=scores.__getitem__)]
    for label, (method, options) in {**BESIDE, "ho_sfl": ("ho_sfl", best)}.items():
        by_task = {task: kept.mean(task, method, options, "") for task in TASKS}
        name = f"test_{label.replace(',', '').replace(' ', '_')}"
        yield Figure(name, mean(by_task.values()), "share", None, _text(options, by_task))


def _text(options: Mapping[str, Any], by_task: Mapping[str, float]) -> str:
    tasks = ", ".join(f"{task} {value:.4f}" for task, value in by_task.items())
    return f"{', '.join(f'{k}={v}' for k, v in options.items())}: {tasks}"


class _Kept:
    """Runs, those of a file not anew."""

    def __init__(self, path: Path | None, seeds: range) -> None:
        self._path, self._seeds = path, seeds
        self._known: dict[str, dict[str, float]] = {}
        self._clusters = clusters()
        if path is not None and path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._known = {line["run"]: line["metrics"] for line in lines}

    def mean(self, task: str, method: str, options: Mapping[str, Any], prefix: str) -> float:
        """Return the mean accuracy over the seeds; 0 for a run that diverged to NaN."""
        found = [self._run(task, method, options, seed) for seed in self._seeds]
        return mean(metrics[f"{prefix}accuracy"] for metrics in found)

    def _run(
        self, task: str, method: str, options: Mapping[str, Any], seed: int
    ) -> dict[str, float]:
        key = json.dumps([task, method, dict(options), seed], sort_keys=True)
        if key not in self._known:
            problem = self._clusters if task == "clusters" else task
            settings: dict[str, Any] = {**SHARED, **TASKS[task], **options, "seed": seed}
            result = simulate(problem, method, backend="inline", **settings)
            self._known[key] = dict(result.summary.metrics)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": key, "metrics": self._known[key]}) + "\n")
        return self._known[key]
