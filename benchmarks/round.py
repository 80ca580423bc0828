"""A HO-SFL round in Flower's simulation, beside its computations and beside a bare loop.

The bare loop (`benchmarks.published`) works between the rounds of the simulation, while Ray's
workers are idle: both sides see the same machine in the same seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.figure import Figure
from benchmarks.published import DECAY, LR, MU, Beside
from sfl_flower import simulate
from sfl_flower.report import RoundRecord

__all__ = ["add_arguments", "options", "run"]

COHORT, BATCH, PROBES, ACTORS = 10, 32, 5, 2
MOST_OVERHEAD = 0.12
LEAST_OF_LOOP = 0.9
RECORDED = "332 to 412 samples/s"
"""What the published runner itself was measured at on two cores of this kind."""
RATIOS = {1: 1.0, 4: 1.2}
"""Mini-batches per exchange, and what of the bare loop's rate is asked for."""
START_UP = {1: 12, 4: 6}
"""First rounds, which are not counted: most clients download then instead of replaying."""
SMALL_ROUNDS, SMALL_START_UP = 40, 5


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--round-rounds", type=int, default=20, help="ResNet-18 rounds to measure (default 20)"
    )
    parser.add_argument(
        "--round-directions",
        choices=("shared", "own"),
        default="shared",
        help="shared by the round's clients, as in the published runner (default), or own",
    )
    parser.add_argument(
        "--round-server-threads", type=int, default=1, help="threads of the server (default 1)"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the overhead of a round, the bare loop's rate, and the rates held against it."""
    yield _overhead()
    bare: list[float] = []
    for minibatches in RATIOS:
        ours, theirs = _rounds(minibatches, args)
        bare += theirs
        yield _rate(minibatches, ours, theirs, args)
        if minibatches == 1:
            yield Figure(
                "round_vs_loop",
                median(theirs) / median(ours),
                "ratio",
                LEAST_OF_LOOP,
                f"steps per second of rounds of {COHORT} clients, a mini-batch each, over "
                f"those of the bare loop on the same cores: rounds of {median(ours):.2f} s and "
                f"{median(theirs):.2f} s, medians of {len(ours)}",
            )
    samples = COHORT * BATCH
    yield Figure(
        "runner_samples_per_second",
        samples / median(bare),
        "samples/s",
        setting=f"the published runner's round as a bare loop, one process, two threads, P = "
        f"{PROBES}, {COHORT} clients x {BATCH}: median of {len(bare)} rounds between the rounds "
        f"of the simulation; best {samples / min(bare):.0f}; the runner itself: {RECORDED}",
    )


class _Watch:
    """Notes the seconds between a round's record and the last, work of its own left out."""

    def __init__(self, start_up: int, beside: Beside | None = None) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._start_up, self._beside = start_up, beside
        self._since = 0.0

    def __call__(self, record: RoundRecord) -> None:
        if record.round > self._start_up:
            self.ours.append(perf_counter() - self._since)
            if self._beside is not None:
                self.theirs.append(self._beside.seconds("round", threads=2))
        self._since = perf_counter()


def options(**more: Any) -> dict[str, Any]:
    """Return what a round of the published runner is trained with here, and more."""
    return {
        "sampled": COHORT,
        "batch_size": BATCH,
        "server_steps": "round",  # the published runner's: one step a round, and no clipping
        "clip_norm": 0.0,
        "probes": PROBES,
        "mu": MU,
        "partition": "iid",
        "server_optimizer": "adamw",
        "server_lr": LR,
        "server_weight_decay": DECAY,
        "client_optimizer": "adamw",
        "client_lr": LR,
        "client_weight_decay": DECAY,
        "client_threads": 1,
        "eval_every": 10**6,
        **more,
    }


def _overhead() -> Figure:
    watch = _Watch(SMALL_START_UP)
    rounds = SMALL_START_UP + SMALL_ROUNDS
    simulate("digits", on_round=watch, **options(clients=COHORT, rounds=rounds))
    with Beside("digits", COHORT, BATCH, PROBES) as beside:
        forwards = median(beside.seconds("forwards", threads=1) for _ in range(SMALL_ROUNDS))
        server = median(beside.seconds("server", threads=1) for _ in range(SMALL_ROUNDS))
    took = median(watch.ours)
    return Figure(
        "round_overhead_s",
        took - forwards / ACTORS - server,
        "s",
        MOST_OVERHEAD,
        f"digits, {COHORT} of {COHORT} clients x {BATCH}, P = {PROBES}, own directions, Flower's "
        f"simulation on {ACTORS} actors of one thread: median of {SMALL_ROUNDS} rounds "
        f"({1e3 * took:.1f} ms) less the {COHORT * (PROBES + 1)} client forwards over {ACTORS} "
        f"({1e3 * forwards / ACTORS:.1f} ms) and the server's forwards, backwards and step "
        f"({1e3 * server:.1f} ms), both timed bare on one thread",
        lower_is_better=True,
    )


def _rounds(minibatches: int, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    with Beside("synthetic", COHORT, BATCH, PROBES) as beside:
        watch = _Watch(START_UP[minibatches], beside)
        settings = options(
            clients=100,
            rounds=START_UP[minibatches] + args.round_rounds,
            minibatches=minibatches,
            directions=args.round_directions,
            server_threads=args.round_server_threads,
        )
        simulate("synthetic", on_round=watch, **settings)
    return watch.ours, watch.theirs


def _rate(
    minibatches: int, ours: list[float], theirs: list[float], args: argparse.Namespace
) -> Figure:
    samples = COHORT * BATCH
    bare = samples / median(theirs)
    rate = minibatches * samples / median(ours)
    best = minibatches * samples / min(ours)
    ratio = RATIOS[minibatches]
    return Figure(
        f"samples_per_second_{minibatches}",
        rate,
        "samples/s",
        ratio * bare,
        f"ResNet-18 to layer2, ImageNet stem, 3x32x32, {COHORT} of 100 clients x {BATCH} x "
        f"{minibatches} mini-batches, P = {PROBES}, {args.round_directions} Rademacher "
        f"directions, AdamW both sides, Flower's simulation on {ACTORS} actors of one thread, "
        f"server threads {args.round_server_threads}: median of {len(ours)} rounds, best "
        f"{best:.0f}; target = {ratio:g} x the bare loop's {bare:.0f} (best "
        f"{samples / min(theirs):.0f}) in the same seconds, ratio {rate / bare:.2f}",
    )
