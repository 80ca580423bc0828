"""`sfl profile`: how long it takes, and how far predicted peaks are from measured ones.

A ResNet-18 on 32x32 images and a GPT-2 of the small size, with random weights; every legal cut and
the whole model.  The time is that of a profile at its defaults; then every peak is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from logging import ERROR, getLogger

import torch
from torch import Tensor, nn

from benchmarks.figure import Figure
from sfl_flower.profiling.cuts import profile_cuts
from sfl_flower.profiling.profile import profile
from sfl_flower.tasks.vision import resnet18

__all__ = ["add_arguments", "run"]

MOST_SECONDS, MOST_ERROR = 60.0, 0.15
HOUR = 3600.0


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--profile-models", default="resnet18,gpt2", help="with commas between them"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield seconds and the largest error of each model."""
    getLogger("flwr").setLevel(ERROR)  # that GPT-2's embedding is untied
    for name in args.profile_models.split(","):
        model, x, what = {"resnet18": _resnet, "gpt2": _gpt2}[name]()
        began = time.perf_counter()
        found = profile(model, x, batch_size=len(x))
        took = time.perf_counter() - began
        measured = sum(row.inference.measured is not None for row in found.cuts)
        yield Figure(
            f"profile_seconds_{name}",
            took,
            "s",
            MOST_SECONDS,
            f"{what}, {len(found.cuts)} rows, {measured} of them measured at the whole batch, "
            f"{torch.get_num_threads()} threads",
            lower_is_better=True,
        )
        errors = {
            (row.at, kind): error
            for row in profile_cuts(model, x, seconds=HOUR)
            for kind, error in (("forwards", row.inference.error), ("backprop", row.backprop.error))
            if error is not None
        }
        worst = max(errors, key=lambda at: errors[at])
        yield Figure(
            f"profile_peak_error_{name}",
            errors[worst],
            "ratio",
            MOST_ERROR,
            f"{what}: largest error of {len(errors)} predicted peaks, {worst[1]} at '{worst[0]}'",
            lower_is_better=True,
        )


def _resnet() -> tuple[nn.Module, Tensor, str]:
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return resnet18(10, stem="imagenet"), x, "ResNet-18, ImageNet stem, batch 64, 3x32x32"


def _gpt2() -> tuple[nn.Module, Tensor, str]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    ids = torch.randint(0, 50_257, (8, 256), generator=torch.Generator().manual_seed(0))
    return model, ids, "GPT-2 small (12 blocks, all trained), batch 8 x 256 tokens"
