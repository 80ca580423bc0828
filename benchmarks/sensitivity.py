"""How accuracy depends on probes, μ, clients, participation, uneven data and lost replies.

The digits of ``make demo`` with eight clients a round.  Beside HO-SFL and HERON-SFL stand the
frozen client, whose server takes as many steps, a walk, whose steps are as long and tell nothing,
and first order.  Every row has its own client rate, chosen with seed 0 at the base setting on
images that are held back, and keeps it along an axis; along P it is chosen anew at each P.

From round to round accuracy jumps, as the server's rate does not fall, so what counts is the mean
over the last evaluations of a run.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.figure import Figure
from benchmarks.grid import Job, Metrics, run_jobs
from benchmarks.learn_beds import WALK, Row
from benchmarks.lost_replies import LostReplies
from sfl_flower import simulate
from sfl_flower.methods import read_options
from sfl_flower.options import check_choice
from sfl_flower.run.micro_batch import client_peak, largest_within
from sfl_flower.tasks import load_task

__all__ = ["add_arguments", "run"]

Held = Mapping[str, Mapping[float, float]]
"""What seed 0 has on held back images, by row and client rate."""
EVALUATIONS, LAST = 20, 5
"""Evaluations of a run, and how many of the last ones are averaged."""
SHARED: Mapping[str, Any] = {
    "task.model": "conv",
    "clients": 8,
    "batch_size": 32,
    "partition": "dirichlet",
    "alpha": 0.5,
    "validation": 0.1,
    "server_optimizer": "sgd",
    "server_momentum": 0.9,
    "server_lr": 0.05,
}
FORWARDS: Mapping[str, Any] = {"probes": 8, "clip_norm": 1.0}
WALKED = (0.01, 0.05, 0.2)
ROWS: Mapping[str, Row] = {
    "frozen": Row("frozen", {"server_steps": "batch"}),
    "walk": Row("ho_sfl", {**FORWARDS, **WALK}, WALKED),
    "ho_sfl": Row("ho_sfl", FORWARDS, (0.1, 0.2, 0.4, 0.8)),
    "heron": Row("heron", {"probes": 8}, (0.05, 0.1, 0.2, 0.4)),
    "heron_walk": Row("heron", {"probes": 8, **WALK}, (*WALKED, 0.4)),
    "splitfed_v2": Row("splitfed_v2", {}, (0.05, 0.1, 0.2, 0.4)),
}
"""The rows at the base."""
PROBES: Mapping[str, Row] = {
    **{
        f"ho_sfl_probes_{probes}": Row("ho_sfl", {**FORWARDS, "probes": probes}, rates)
        for probes, rates in {
            1: (0.02, 0.05, 0.1),
            4: (0.1, 0.2, 0.4),
            16: (0.2, 0.4, 0.8),
            64: (0.4, 0.8),
        }.items()
    },
    "walk_probes_1": Row("ho_sfl", {**FORWARDS, "probes": 1, **WALK}, WALKED),
}
"""The rows along P: each chooses its own rate."""
ROUND: Mapping[str, Any] = {"server_steps": "round"}
PACES: Mapping[str, Row] = {
    f"{label}_round_{rate:g}": Row(
        ROWS[label].method,
        {**ROWS[label].settings, **ROUND, "server_lr": rate},
        ROWS[label].rates[1:3],
    )
    for label in ("frozen", "ho_sfl")
    for rate in (0.05, 0.2)
}
"""The rows with a server step a round, at the base's server rate and at a higher one."""
AXES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "lost": {"10": {"lost": 0.1}, "30": {"lost": 0.3}},
    "sampled": {"2": {"sampled": 2}, "4": {"sampled": 4}},
    "alpha": {"0_1": {"alpha": 0.1}, "10": {"alpha": 10.0}},
    "clients": {"32": {"clients": 32, "sampled": 8}, "128": {"clients": 128, "sampled": 8}},
}
"""Axis -> value -> what is changed."""
ALONG = ("frozen", "walk", "ho_sfl", "heron", "splitfed_v2")
"""The rows that run along each of these axes."""
MU: Mapping[str, Mapping[str, Any]] = {
    f"{mu:.0e}".replace("-", "_"): {"mu": mu} for mu in (1e-8, 1e-7, 1e-5, 1e-1)
}
"""Probe lengths of HO-SFL beside the base's 1e-3."""
MATCHED = "splitfed_v2"
"""The row that is run in the memory of forwards too."""
MOVED, MOVES = 1e-7, 6
"""First weights are moved by about this share of each, so many times: a control for rounding."""
PARTS = ("base", "memory", "probes", *AXES, "mu", "pace")
"""What may be asked for: the base, first order in as little memory, and each axis."""


def job(row: Row, client_lr: float, seed: int, rounds: int, changes: Mapping[str, Any]) -> Job:
    """Return one run of a row.

    Parameters
    ----------
    row : Row
        The method and its settings.
    client_lr : float
        Its client rate; not read where the row has none.
    seed, rounds : int
        The seed, and the rounds where eight clients take part in each; with fewer there are more,
        so that as many mini-batches reach the server.
    changes : mapping of str to value
        What differs from the base.
    """
    options = {**SHARED, **row.settings, **({"client_lr": client_lr} if row.rates else {})}
    rounds = rounds * SHARED["clients"] // int(changes.get("sampled", SHARED["clients"]))
    timed = {"rounds": rounds, "eval_every": max(1, rounds // EVALUATIONS), "seed": seed}
    return Job("digits", row.method, {**options, **timed, **changes})


def train(job: Job) -> Metrics:
    """Return the results of the whole model, each the mean over the last evaluations."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # replies are lost on purpose
    options = dict(job.options)
    lost = options.pop("lost", 0.0)
    mods = [LostReplies(lost, options["seed"])] if lost else []
    own = {key[5:]: options.pop(key) for key in job.options if key.startswith("task.")}
    task = load_task(job.task, **own)
    moved, draw = options.pop("moved", 0.0), options.pop("draw", 0)
    if moved:
        token = f"{task.token} moved {moved} {draw}"  # the task of other first weights is another
        task = replace(task, model=partial(_moved, task.model, moved, draw), token=token)
    result = simulate(task, job.method, backend="inline", mods=mods, **options)
    evaluated = [record.metrics for record in result.history if record.metrics][-LAST:]
    found = {name: mean(each[name] for each in evaluated) for name in evaluated[-1]}
    return {**found, "samples": float(result.summary.samples)}


def _moved(build: Callable[[], nn.Module], share: float, draw: int) -> nn.Module:
    """Return a model whose first weights are multiplied by 1 + share × a normal number."""
    model, generator = build(), torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + share * torch.randn(parameter.shape, generator=generator))
    return model


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--sensitivity-rounds", type=int, default=100, help="rounds of each run of eight clients"
    )
    parser.add_argument("--sensitivity-seeds", type=int, default=3, help="seeds 0, 1, … of a row")
    parser.add_argument("--sensitivity-workers", type=int, default=1, help="runs side by side")
    for name, known, what in (("axes", PARTS, "what to run"), ("rows", ROWS, "rows at the base")):
        said = f"{what}, with commas between, of: {', '.join(known)}"
        parser.add_argument(f"--sensitivity-{name}", default=",".join(known), help=said)
    parser.add_argument(
        "--sensitivity-out", type=Path, help="file of results: runs in it are not run again"
    )


@dataclass(frozen=True)
class Point:
    """A row at one value of an axis.

    Attributes
    ----------
    name : str
        Of the figure.
    row : Row
        The method and its settings.
    held : mapping of float to float
        What seed 0 has on held back images at the base, by client rate; the best rate is run.
    changes : mapping of str to value
        What differs from the base.
    """

    name: str
    row: Row
    held: Mapping[float, float]
    changes: Mapping[str, Any]

    @property
    def rate(self) -> float:
        """The client rate; 0 where the row has none."""
        return max(self.held, key=self.held.__getitem__)


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the accuracy of each row at the base, and along each axis that is asked for.

    Raises
    ------
    ConfigError
        If an axis is none of `PARTS`.
    """
    rounds, seeds = args.sensitivity_rounds, range(args.sensitivity_seeds)
    asked = args.sensitivity_axes.split(",")
    given = args.sensitivity_rows.split(",")
    for part in asked:
        check_choice("--sensitivity-axes", part, PARTS)
    for label in given:
        check_choice("--sensitivity-rows", label, ROWS)

    def results(jobs: list[Job]) -> list[Metrics]:
        done = run_jobs(jobs, args.sensitivity_workers, args.sensitivity_out, train)
        return [done[each.key()] for each in jobs]

    def tuned(rows: Mapping[str, Row]) -> Held:
        tried = [(label, rate) for label, row in rows.items() for rate in row.rates or (0.0,)]
        found = results([job(rows[label], rate, 0, rounds, {}) for label, rate in tried])
        held: dict[str, dict[float, float]] = {label: {} for label in rows}
        for (label, rate), metrics in zip(tried, found, strict=True):
            held[label][rate] = metrics["validation_accuracy"]
        return held

    own = {"probes": PROBES, "pace": PACES}
    chosen = [label for label in ROWS if label in given]
    needed = set(asked) - own.keys() - {"memory"}
    rows = {label: ROWS[label] for label in chosen if needed}
    if "memory" in asked:
        rows |= {MATCHED: ROWS[MATCHED]}
    for part in own.keys() & set(asked):
        rows |= own[part]
    held = tuned(rows)
    points = [point for part in asked for point in _points(part, held, chosen)]
    found = results(
        [job(at.row, at.rate, seed, rounds, at.changes) for at in points for seed in seeds]
    )
    for number, point in enumerate(points):
        yield _accuracy(point, found[number * len(seeds) : (number + 1) * len(seeds)])
    if "memory" in asked:
        yield from _memory(held[MATCHED], seeds, rounds, results)


def _memory(
    held: Mapping[float, float],
    seeds: range,
    rounds: int,
    results: Callable[[list[Job]], list[Metrics]],
) -> Iterator[Figure]:
    """Yield what first order has in the memory of forwards, and how far rounding alone goes."""
    micro, matched = _matched()
    yield matched
    point = Point(f"{MATCHED}_memory", ROWS[MATCHED], held, {"micro_batch": str(micro)})
    moves = [{"moved": MOVED, "draw": draw} for draw in range(MOVES)]

    def trained(changes: Mapping[str, Any]) -> list[Metrics]:
        return results([job(point.row, point.rate, seed, rounds, changes) for seed in seeds])

    whole, apart = trained({}), trained(point.changes)
    yield _accuracy(point, apart)
    moved = [trained(changes) for changes in moves]
    for name, runs, what in (
        ("micro_batches", [apart], f"in micro-batches of {micro}"),
        ("moved_weights", moved, f"first weights moved by {MOVED:g} of each, {MOVES} times"),
    ):
        apart_by, by_seed = list[float](), list[str]()
        for at, *others in zip(whole, *runs, strict=True):
            changes = [each["accuracy"] - at["accuracy"] for each in others]
            apart_by += changes
            listed = ", ".join(f"{change:.4f}" for change in changes)
            by_seed.append(f"{at['accuracy']:.4f}: {listed}")
        yield Figure(
            f"accuracy_change_of_{name}",
            mean(apart_by),
            "share",
            None,
            f"{point.row.method}, {what}, of each seed the accuracy without and the changes: "
            f"{'; '.join(by_seed)}; standard deviation {_spread(apart_by):.4f}",
        )


def _points(part: str, held: Held, chosen: list[str]) -> Iterator[Point]:
    """Yield what is run of a part, of the chosen rows where these are rows of the base."""
    if part == "base":
        for label in chosen:
            yield Point(f"{label}_base", ROWS[label], held[label], {})
    elif part == "probes":
        for label, row in PROBES.items():
            yield Point(label, row, held[label], {})
    elif part == "mu" and "ho_sfl" in chosen:
        for value, changes in MU.items():
            yield Point(f"ho_sfl_mu_{value}", ROWS["ho_sfl"], held["ho_sfl"], changes)
    elif part == "pace":
        for label in ("frozen", "ho_sfl"):
            # The server's rate is one more choice here, in favour of the slower pace.
            names = [name for name in PACES if name.startswith(f"{label}_round")]
            best = max(names, key=lambda name: max(held[name].values()))
            yield Point(f"{label}_round", PACES[best], held[best], {})
    for value, changes in AXES.get(part, {}).items():
        for label in [label for label in chosen if label in ALONG]:
            yield Point(f"{label}_{part}_{value}", ROWS[label], held[label], changes)


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _accuracy(point: Point, found: list[Metrics]) -> Figure:
    test = [metrics["accuracy"] for metrics in found]
    own = ", ".join(
        f"{key}={value}" for key, value in {**point.row.settings, **point.changes}.items()
    )
    tried = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in point.held.items())
    return Figure(
        f"accuracy_{point.name}",
        mean(test),
        "share",
        None,
        f"{point.row.method} ({own or 'no settings'}), seeds "
        f"{', '.join(f'{value:.4f}' for value in test)}, standard deviation "
        f"{_spread(test):.4f}, {mean(m['samples'] for m in found):.0f} "
        f"samples; client rate {point.rate:g}, of seed 0 at the base on held back images: {tried}",
    )


def _matched() -> tuple[int, Figure]:
    """Return the micro-batch of first order in the peak of forwards, and how both peaks compare."""
    task, size = load_task("digits", model=SHARED["task.model"]), int(SHARED["batch_size"])

    def peaks(row: Row) -> Callable[[int], int]:
        options = {**SHARED, **row.settings, "task": "digits", "method": row.method}
        config, method, settings, _ = read_options(options)
        return cache(partial(client_peak, task, method, config, settings))

    forwards, first = peaks(ROWS["ho_sfl"])(size + 1), peaks(ROWS[MATCHED])
    samples, found = largest_within(forwards, first, size)
    at = samples or min(found, key=found.__getitem__)
    return at, Figure(
        "client_peak_matched_digits",
        found[at] / forwards,
        "ratio",
        1.0,
        f"splitfed_v2 in micro-batches of {at} {found[at]} bytes, at once {first(size + 1)}; "
        f"ho_sfl at once {forwards}",
        lower_is_better=True,
    )
