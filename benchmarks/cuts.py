"""Cuts that give the whole model's output bit for bit, in eval mode, over all architectures.

Each architecture is a tiny model with random weights and statistics, cut behind every layer where a
cut is legal. torchvision's stand in `benchmarks/architectures.py`, those of Hugging Face's
transformers in `benchmarks/language_models.py`, and language models of real size, each cut behind
its third block, in `benchmarks/real_language_models.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.architectures import TORCHVISION, Architecture
from benchmarks.figure import Figure
from benchmarks.language_models import LANGUAGE_MODELS
from benchmarks.real_language_models import REAL_LANGUAGE_MODELS
from sfl_flower.split import Halves, cut, every_cut
from sfl_flower.split.graph.equality import same

__all__ = ["ARCHITECTURES", "add_arguments", "faults", "run"]

ARCHITECTURES = (*TORCHVISION, *LANGUAGE_MODELS)
"""All families; another one's tuple is added here."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--cuts-real",
        action="store_true",
        help="language models of real size as well, random weights (minutes, 8 GiB)",
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the share of equal cuts of each architecture, and of all."""
    total, equal, wrong = 0, 0, []
    architectures = (*ARCHITECTURES, *(REAL_LANGUAGE_MODELS if args.cuts_real else ()))
    for architecture in architectures:
        found = faults(architecture)
        bad = [f"{at} ({why})" for at, why in found.items() if why]
        total, equal = total + len(found), equal + len(found) - len(bad)
        wrong += [architecture.name] if bad else []
        yield Figure(
            f"cuts_{architecture.name}",
            _share(len(found) - len(bad), len(found)),
            "share",
            1.0,
            f"{len(found)} cuts, {len(found) - len(bad)} equal"
            + (f"; not equal: {', '.join(bad)}" if bad else ""),
        )
    yield Figure(
        "cuts_equal_share",
        _share(equal, total),
        "share",
        1.0,
        f"{equal} of {total} cuts of {len(architectures)} architectures equal; with unequal ones: "
        f"{', '.join(wrong) or 'none'}",
    )


def faults(architecture: Architecture) -> dict[str, str]:
    """Cut at every legal layer; return for each what is wrong there, an empty string if nothing.

    A layer that a person would name and that is no legal cut counts as one that is wrong.
    """
    model = architecture.model()
    x = architecture.inputs()
    with torch.no_grad():
        expected = architecture.whole(model, x.clone())
        only = architecture.only
        cuts = (cut(model, at) for at in only) if only else every_cut(model)
        found = {halves.at: _fault(model, halves, x, expected) for halves in cuts}
    return {**found, **{at: "not legal" for at in architecture.named if at not in found}}


def _fault(model: nn.Module, halves: Halves, x: torch.Tensor, expected: object) -> str:
    lower, upper = halves.client.state_dict(), halves.server.state_dict()
    joined, state = {**lower, **upper}, model.state_dict()
    if len(joined) != len(lower) + len(upper):
        return "a name in both halves"
    if joined.keys() != state.keys() or not all(same(joined[name], state[name]) for name in state):
        return "another state"
    z = halves.client.eval()(x.clone())
    if not isinstance(z, torch.Tensor):
        return "not one tensor"
    return "" if same(halves.server.eval()(z), expected) else "another output"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
