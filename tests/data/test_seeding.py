from __future__ import annotations

import pytest
import torch
from torch import nn

from sfl_flower.data import derive, generator, seeded_construction


def test_keys_tell_types_and_borders_apart() -> None:
    keys = {derive(1), derive("1"), derive("a", "b"), derive("a,b"), derive("ab"), derive()}
    assert len(keys) == 6
    assert all(0 <= key < 2**128 for key in keys)


def test_known_key() -> None:
    assert derive("a", 1) == 73802635449438533854961027583817151461
    assert generator("x").integers(1000, size=3).tolist() == [645, 629, 551]


def _weights(seed: int) -> torch.Tensor:
    with seeded_construction(seed):
        return nn.Linear(3, 2).weight.detach()


def test_weights_depend_on_the_seed_alone() -> None:
    first = _weights(5)
    torch.rand(1)
    assert torch.equal(first, _weights(5))
    assert not torch.equal(first, _weights(6))


def test_the_default_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    _weights(5)
    assert torch.equal(before, torch.get_rng_state())


def test_the_default_generator_is_left_as_it_was_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded_construction(1):
        torch.rand(1)
        raise KeyError
    assert torch.equal(before, torch.get_rng_state())


def test_modules_are_built_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert _weights(1).device.type == "cpu"
