"""Texts of a few tokens, and tiny transformers with adapters that tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.language_models import build, lively, tokens
from sfl_flower.task import Samples
from sfl_flower.tasks.adapters import adapt
from tests.tiny import SharedOut

__all__ = ["RANK", "T", "adapted", "texts"]

RANK, T = 2, 10
LENGTHS = (7, 3, 9, 1)


def adapted(name: str) -> nn.Module:
    """Return a classifier of 4 blocks of width 16, with adapters and a trained output layer."""
    # Eager attention has second derivatives, which an alignment needs.
    model: nn.Module = build(name, attn_implementation="eager")
    adapt(model, name.partition("-")[0], RANK, RANK, "")
    lively(nn.ParameterList(p for p in model.parameters() if p.requires_grad), seed=3)
    last = "score" if name == "gpt2-classes" else "classifier"
    model.get_submodule(last).requires_grad_(True)
    return model


def texts(
    name: str, change: Callable[[nn.Module], object] = lambda model: None, **options: Any
) -> SharedOut:
    """Return a task of two clients with 8 texts each, of 1 to 9 tokens, cut behind two blocks.

    Parameters
    ----------
    name : {"gpt2-classes", "bert-classes"}
        The model.
    change : callable
        What is done to it before it is cut.
    **options
        Of the task.
    """

    def model() -> nn.Module:
        made = adapted(name)
        change(made)
        return made

    x = tokens(LENGTHS * 4, T)
    samples = Samples(x, torch.arange(len(x)) % 3)
    task = SharedOut(
        name="texts", model=model, cut="block:2", train=lambda: samples, test=lambda: samples,
        classes=3, **options,
    )  # fmt: skip
    object.__setattr__(task, "shares", [samples.take(slice(i, i + 8)) for i in (0, 8)])
    return task
