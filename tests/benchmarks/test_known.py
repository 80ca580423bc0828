"""The limit of guides is the gradient of the clients' own mini-batches."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from benchmarks.known import KNOWN
from sfl_flower import simulate
from tests import tiny
from tests.benchmarks.test_outright import OPTIONS


def linear() -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Linear(6, 5), out=nn.Linear(5, 3)))


def test_it_is_ho_sfl_whose_public_inputs_are_the_clients_own() -> None:
    own, other = tiny.samples(12), tiny.samples(12, 7)
    task, strange = (
        tiny.task(clients=1, build=linear, cut="first", public=lambda x=x: x) for x in (own, other)
    )
    public = simulate(task, "ho_sfl", **OPTIONS).model["first.weight"]
    known = simulate(strange, KNOWN, **OPTIONS).model["first.weight"]
    assert torch.allclose(public, known, atol=1e-5)
    assert not torch.allclose(
        simulate(strange, "ho_sfl", **OPTIONS).model["first.weight"], known, atol=1e-4
    )
