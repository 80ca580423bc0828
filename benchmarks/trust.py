"""Whether runs survive what happens to them: kills, faults, garbage and a thousand rounds.

Each part is a module ``benchmarks/trust_<name>.py`` with ``figures(args) -> Iterator[Figure]``
and ``add_arguments(parser)``, whose options begin with ``--trust-<name>``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from benchmarks.figure import Figure
from sfl_flower.options import check_choice

__all__ = ["PARTS", "add_arguments", "run"]

PARTS = {
    "resume": "the server killed at random moments, over all methods: equal to the bit (minutes)",
    "faults": "accuracy with 30 % of replies lost, late, doubled or NaN (long)",
    "fuzz": "damaged messages, journals, checkpoints and configurations in every decoder (minutes)",
    "robust": "clients that lie, under the mean and under robust aggregators (minutes)",
    "dp": "noise and epsilon as stated, and accuracy on SST-2 by epsilon (long)",
    "labels": "labels that stay on clients: what is read of them, accuracy by epsilon (minutes)",
    "nopeek": "an attacker's decoder with NoPeek's term and without, and accuracy (minutes)",
    "secagg": "secure sums: equal to plain ones, and what they cost a client",
    "attack": "what a server reconstructs at cuts of two models, by defence (minutes)",
    "deploy": "a SuperNode killed and started again in a deployment with TLS and keys (minutes)",
    "soak": "1 000 rounds of 100 clients that come and go: memory and files (minutes)",
}
"""Name -> what it shows."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark and of its parts."""
    said = f"which, with commas between, of: {', '.join(PARTS)} (default all)"
    parser.add_argument("--trust-parts", default=",".join(PARTS), help=said)
    for name in PARTS:
        _part(name).add_arguments(parser)


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the figures of the parts that are asked for.

    Raises
    ------
    ConfigError
        If one is none of `PARTS`.
    """
    asked = args.trust_parts.split(",")
    for name in asked:
        check_choice("--trust-parts", name, PARTS)
    for name in asked:
        yield from _part(name).figures(args)


def _part(name: str) -> Any:
    return import_module(f"benchmarks.trust_{name}")
