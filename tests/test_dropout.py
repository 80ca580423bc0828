"""Dropout where it is allowed: the same masks in both forwards of a step, and in every run."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from sfl_flower import simulate
from tests import tiny


def _model() -> nn.Module:
    """Return a model with dropout on both sides of the cut (`act`)."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            drop=nn.Dropout(0.5),
            act=nn.Tanh(),
            drop2=nn.Dropout(0.5),
            out=nn.Linear(tiny.CUT, tiny.CLASSES),
        )
    )


@pytest.mark.parametrize("method", ["splitfed_v2", "frozen"])
def test_a_run_with_dropout_repeats_to_the_bit(method: str) -> None:
    models = []
    for noise in (1, 2):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(noise)  # what else the process drew is no matter
            result = simulate(
                tiny.task(build=_model),
                method,
                backend="inline",
                rounds=3,
                clients=2,
                partition="iid",
                batch_size=4,
            )
        models.append(result.model)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
