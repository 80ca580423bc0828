"""The control of guides steps as the probe would tell if the guide's vector were the gradient."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.outright import OUTRIGHT
from sfl_flower import simulate
from tests import tiny

OPTIONS: dict[str, Any] = {
    "clients": 1, "batch_size": 12, "rounds": 2, "guide": "public", "guide_rest": 0.0, "probes": 1,
    "clip_norm": 0.0, "client_lr": 0.3, "eval_every": 2, "backend": "inline",
}  # fmt: skip


def linear() -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Linear(6, 5), out=nn.Linear(5, 3)))


@pytest.mark.parametrize("own", [True, False])
def test_where_the_public_inputs_are_the_clients_own_it_is_ho_sfl(own: bool) -> None:
    """A linear half has no error in μ, so both steps are the gradient's along the guide."""
    public = tiny.samples(12) if own else tiny.samples(12, 7)
    task = tiny.task(clients=1, build=linear, cut="first", public=lambda: public)
    measured, outright = (
        simulate(task, method, **OPTIONS).model for method in ("ho_sfl", OUTRIGHT)
    )
    a, b = (model["first.weight"] for model in (measured, outright))
    assert torch.allclose(a, b, atol=1e-4) == own
