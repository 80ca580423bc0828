"""HO-SFL and HERON-SFL between the frozen client and their first-order twins, on Fashion-MNIST.

Every row, the controls first, runs at each of its server rates and each seed; a row's accuracy is
the mean over seeds of the test set at its own best rate, which is chosen on training images that
are held back.  Forward-only methods have a row at a client rate of 0: what they claim is the margin
over it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.figure import Figure
from benchmarks.grid import Job, run_jobs
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
    "validation": 0.1,
    "server_optimizer": "sgd",
    "server_momentum": 0.9,
}
SERVER_RATES = (0.05, 0.1, 0.2)
HO_SFL: Mapping[str, Any] = {
    "server_steps": "round",
    "client_lr_schedule": "cosine",
    "client_lr_warmup": 100,
}
HERON: Mapping[str, Any] = {
    "head": "pooled",
    "head_trainer": "server",
    "head_lr": 0.02,
    "client_lr_schedule": "cosine",
    "client_lr_warmup": 0.05,
}
# Probes that move nothing: one tells the same as many.
STILL: Mapping[str, Any] = {"client_lr": 0.0, "probes": 1}
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "frozen_round": ("frozen", {"server_steps": "round"}),
    "frozen_batch": ("frozen", {"server_steps": "batch"}),
    "first_order": (
        "splitfed_v2",
        {"client_lr": 0.05, "client_state": "kept", "client_momentum": 0.9},
    ),
    "ho_sfl": ("ho_sfl", {**HO_SFL, "probes": 256, "client_lr": 0.4, "clip_norm": 0.0}),
    "ho_sfl_rate_0": ("ho_sfl", {**HO_SFL, **STILL}),
    "cse_fsl": ("cse_fsl", {"head": "pooled", "client_lr": 0.3}),
    "heron": ("heron", {**HERON, "probes": 32, "client_lr": 0.1}),
    "heron_rate_0": ("heron", {**HERON, **STILL}),
}
"""Label -> method and the settings that are its own."""
RATES: Mapping[str, tuple[float, ...]] = {
    **dict.fromkeys(METHODS, SERVER_RATES),
    "ho_sfl": (0.05,),
    "heron": (0.05,),
}
"""Server rates tried.  A row counts at its best one, so trying fewer can only lower its figure: the
long runs are held to one."""
CONTROLS = ("frozen_round", "frozen_batch")
GAPS: Mapping[str, tuple[str, str, float]] = {
    "gap_closed_ho_sfl": ("ho_sfl", "first_order", 0.85),
    "gap_closed_heron": ("heron", "cse_fsl", 0.6),
}
"""Figure -> method, its first-order twin, the target; the higher control counts."""
MARGINS: Mapping[str, tuple[str, str]] = {
    "margin_ho_sfl": ("ho_sfl", "ho_sfl_rate_0"),
    "margin_heron": ("heron", "heron_rate_0"),
}
"""Figure -> method, and itself at a client rate of 0."""
Scores = Mapping[tuple[str, float], list[dict[str, float]]]
"""Results of the runs of a label at a server rate, by seed."""


def job(label: str, server_lr: float, seed: int, rounds: int) -> Job:
    """Return one run of the grid."""
    method, settings = METHODS[label]
    options = {"rounds": rounds, "eval_every": rounds, "seed": seed, "server_lr": server_lr}
    return Job("fashion_mnist", method, {**SHARED, **settings, **options})


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
    seeds, rounds = range(args.learning_seeds), args.learning_rounds
    jobs = {
        (label, rate): [job(label, rate, seed, rounds) for seed in seeds]
        for label in chosen
        for rate in RATES[label]
    }
    every = [each for asked in jobs.values() for each in asked]
    done = run_jobs(every, args.learning_workers, args.learning_out)
    found = {at: [done[each.key()] for each in asked] for at, asked in jobs.items()}
    best: dict[str, float] = {}
    for label in chosen:
        rate = _best_rate(label, found)
        best[label] = mean(_test(found[label, rate]))
        yield Figure(f"accuracy_{label}", best[label], "share", None, _setting(label, rate, found))
    for name, (label, twin, target) in GAPS.items():
        if {label, *CONTROLS, twin} <= best.keys():
            yield _gap(name, label, max(CONTROLS, key=best.__getitem__), twin, target, best)
    for name, (label, still) in MARGINS.items():
        if {label, still} <= best.keys():
            words = f"{label} - {still} = {best[label]:.4f} - {best[still]:.4f}"
            yield Figure(name, best[label] - best[still], "share", None, words)


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


def _test(runs: Sequence[Mapping[str, float]]) -> list[float]:
    return [metrics["accuracy"] for metrics in runs]


def _held_back(runs: Sequence[Mapping[str, float]]) -> float:
    return mean(metrics["validation_accuracy"] for metrics in runs)


def _best_rate(label: str, found: Scores) -> float:
    return max(RATES[label], key=lambda rate: _held_back(found[label, rate]))


def _setting(label: str, rate: float, found: Scores) -> str:
    method, settings = METHODS[label]
    runs = _test(found[label, rate])
    spread = stdev(runs) if len(runs) > 1 else 0.0
    others = ", ".join(
        f"{other:g}: {_held_back(found[label, other]):.4f}" for other in RATES[label]
    )
    own = ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"
    return (
        f"{method} ({own}), server rate {rate:g}, {len(runs)} seeds, standard deviation "
        f"{spread:.4f}; mean on held back images by server rate {others}"
    )
