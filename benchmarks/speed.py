"""Rounds per second of SplitFed V2, CSE-FSL and FSL-SAGE in simulation, beside bare loops.

The bare loops (`benchmarks.bare_loops`) work between the rounds of the simulation, while Ray's
workers are idle: both sides see the same machine in the same minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.bare_loops import LR, serve
from benchmarks.beside import Worker
from benchmarks.figure import Figure
from sfl_flower import simulate
from sfl_flower.data import Samples, generator
from sfl_flower.report import RoundRecord
from sfl_flower.task import SplitTask
from sfl_flower.tasks.vision import channels_last, resnet18

__all__ = ["METHODS", "START_UP", "add_arguments", "options", "run", "task"]

BATCH, PERIOD, HEAD = 64, 5, "blocks:layer3"
START_UP = 2
"""First rounds, which are not counted: clients measure memory and operations in them."""
RECORDED = {
    "splitfed_v2": "16.0 to 20.1 s",
    "cse_fsl": "11.6 to 12.8 s",
    "fsl_sage": "9.3 to 10.9 s without alignment",
}
"""Seconds a round of the official code took on two cores of this kind."""
OWN: dict[str, dict[str, Any]] = {
    "splitfed_v2": {},
    "cse_fsl": {"head": HEAD, "upload_every": PERIOD},
    # The round that aligns is among those that are not counted.
    "fsl_sage": {
        "head": HEAD,
        "upload_every": PERIOD,
        "align_every": 10**6,
        "align_epochs": 1,
    },
}
METHODS = tuple(OWN)


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--speed-rounds", type=int, default=3, help="rounds to measure (default 3)")
    parser.add_argument("--speed-clients", type=int, default=5, help="clients (default 5)")
    parser.add_argument("--speed-images", type=int, default=2000, help="of each (default 2000)")
    parser.add_argument(
        "--speed-methods", default=",".join(METHODS), help="of these, with commas (default all)"
    )
    parser.add_argument(
        "--speed-server-threads", type=int, default=1, help="threads of the server (default 1)"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield a method's rounds per second, held against the bare loop's."""
    problem = task(args.speed_clients * args.speed_images)
    sizes = (args.speed_clients, args.speed_images, BATCH, PERIOD)
    for method in args.speed_methods.split(","):
        with Worker(serve, problem, HEAD, *sizes) as bare:
            bare.seconds(method, threads=2)  # the first turn is not counted
            yield _figure(method, problem, bare, args)


def _figure(method: str, problem: SplitTask, bare: Worker, args: argparse.Namespace) -> Figure:
    ours: list[float] = []
    theirs: list[float] = []
    since = perf_counter()

    def watch(record: RoundRecord) -> None:
        nonlocal since
        if record.round > START_UP:
            ours.append(perf_counter() - since)
            theirs.append(bare.seconds(method, threads=2))
        since = perf_counter()

    simulate(
        problem,
        method,
        on_round=watch,
        rounds=START_UP + args.speed_rounds,
        clients=args.speed_clients,
        client_threads=1,
        server_threads=args.speed_server_threads,
        **options(method),
    )
    took, loop = median(ours), median(theirs)
    return Figure(
        f"rounds_per_second_{method}",
        1.0 / took,
        "rounds/s",
        1.0 / loop,
        f"ResNet-18 to layer2, ImageNet stem, 3x32x32, {args.speed_clients} IID clients x "
        f"{args.speed_images} images, batch {BATCH}, one local epoch a round, k = {PERIOD}, Adam "
        f"{LR:g}, Flower's simulation on 2 actors of one thread, server threads "
        f"{args.speed_server_threads}: median of {len(ours)} rounds {took:.2f} s (best "
        f"{min(ours):.2f}); target = the bare loop on two threads in the same minutes, "
        f"{loop:.2f} s (best {min(theirs):.2f}), ratio {loop / took:.2f}; the official code, "
        f"recorded at 2000 images: {RECORDED[method]}",
    )


def options(method: str) -> dict[str, Any]:
    """Return what the rounds of a method are trained with, but for their sizes and threads."""
    return {
        "batch_size": BATCH,
        "partition": "iid",
        "local_steps": 0,
        "client_optimizer": "adam",
        "client_lr": LR,
        "client_state": "kept",
        "server_optimizer": "adam",
        "server_lr": LR,
        "eval_every": 10**6,
        **OWN.get(method, {}),
    }


def task(images: int) -> SplitTask:
    """Return the task: noise for so many images of CIFAR-10's size, BatchNorm in train mode."""
    return SplitTask(
        name="noise",
        model=partial(resnet18, 10),
        cut="layer2",
        train=partial(_noise, "train", images),
        test=partial(_noise, "test", 64),
        classes=10,
        transform=channels_last,
        token=f"speed:{images}",
    )


def _noise(split: str, n: int) -> Samples:
    draw = generator("speed", split)
    x = draw.standard_normal((n, 3, 32, 32), dtype=np.float32)
    return Samples(torch.from_numpy(x), torch.from_numpy(draw.integers(10, size=n)))
