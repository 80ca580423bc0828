"""The share of the gradient's energy that a choice of few client parameters holds.

At the first weights, on test batches: directions come from other samples, 64 that are public.
ResNet-18 from random weights on CIFAR-10, behind layer2; MiniLM on SST-2, behind all of its blocks
and behind two; EfficientNet-Lite0 from its ImageNet weights on CIFAR-10.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figure import Figure
from sfl_flower.data import model_seed
from sfl_flower.server.energy import EnergyShare, energy_share, sample_gradients
from sfl_flower.server.subspace import fitted, public_gradients, resolved
from sfl_flower.tasks import load_task

__all__ = ["add_arguments", "run"]

CHOICES = ("subspace:1", "subspace:4", "core:16", "subspace:auto:0.6")
DEPTHWISE = {"core:16": "core:*.depthwise.*=1,*=16"}
"""What stands for a choice where a group has one output, and so one direction of them."""


@dataclass(frozen=True)
class Case:
    """A task, the choice that its figure is of, and choices in place of others."""

    task: str
    options: Mapping[str, Any]
    chosen: str = "subspace:auto"
    target: float | None = 0.6
    instead: Mapping[str, str] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "resnet18": Case("cifar10", {"stem": "cifar", "train_size": 2000}),
    "minilm": Case("sst2", {"lora_rank": 0, "cut": "block:6", "train_size": 2000}),
    "minilm_block2": Case("sst2", {"lora_rank": 0, "cut": "block:2", "train_size": 2000}),
    "efficientnet": Case(
        "efficientnet_cifar10", {"train_size": 2000}, target=None, instead=DEPTHWISE
    ),
}


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--energy-cases", default=",".join(CASES), help="which, by commas")
    parser.add_argument("--energy-choices", help="choices of parameters, by spaces")
    parser.add_argument("--energy-batches", type=int, default=8, help="test batches of 32")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the share of each choice, then the figure of each case."""
    choices = args.energy_choices.split() if args.energy_choices else list(CHOICES)
    for label in args.energy_cases.split(","):
        case = CASES[label]
        task = load_task(case.task, **case.options)
        seed = model_seed(0)
        gradients = sample_gradients(task, seed, args.energy_batches)
        public = public_gradients(task, seed)
        for given in dict.fromkeys([*choices, case.chosen]):
            trained = case.instead.get(given, given)
            chosen = resolved(task.with_trained(trained), seed, public)
            share = energy_share(fitted(chosen, seed, gradients=public).client, gradients)
            name = given.replace(":", "_").replace(".", "").replace("*", "all")
            yield figure(f"energy_share_{label}_{name}", share, trained, case, None)
            if given == case.chosen:
                yield figure(f"energy_share_{label}", share, trained, case, case.target)


def figure(name: str, share: EnergyShare, trained: str, case: Case, target: float | None) -> Figure:
    """Return the share of the mean gradient as a figure."""
    options = ", ".join(f"{key}={value}" for key, value in case.options.items())
    return Figure(
        name,
        share.mean,
        "share",
        target,
        f"{trained} on {case.task} ({options}), at the first weights: {share.trained} of "
        f"{share.parameters} parameters, {share.size:.2%}; of the mean gradient over the test "
        f"batches, and {share.batches:.4f} of the batches' own energy",
    )
