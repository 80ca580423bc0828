"""The least that probes need, which a client's step is held against."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.step import Least


def test_probes_of_the_least_are_differences_at_the_weights_they_write() -> None:
    half = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        half.weight.copy_(torch.tensor([[1.0, 2.0]]))
    x = torch.tensor([[3.0, 4.0]])
    with torch.no_grad():
        found = Least(half, 2).probe(x, half(x))
    # z = 11, and a step of 1e-3 in each weight adds 0.007 to it: 11 x 0.007.
    assert torch.stack(found).allclose(torch.full((2,), 0.077, dtype=torch.float64), rtol=1e-3)
    assert torch.equal(half.weight, torch.tensor([[1.0, 2.0]]))
