from __future__ import annotations

import pytest
import torch
from torch import nn

from sfl_flower.data import (
    client_key,
    derive,
    division_seed,
    generator,
    model_seed,
    seeded_construction,
    server_seed,
)


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


def test_known_keys_of_a_run() -> None:
    # Every run's bits follow from them: they must not move by accident.
    assert (model_seed(0), division_seed(0)) == (453256590, 1774730896)
    assert client_key(0, 0) == "cedc439574d138aaa950b1849b805d44"
    assert client_key(1, 2) == "8f044be7cc416392d97c784210e4302b"
    assert server_seed(5) == 5


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_seeds_that_travel_are_ones_that_every_generator_takes(seed: int) -> None:
    given = (model_seed(seed), division_seed(seed))
    assert all(0 <= found < 2**31 for found in given)
    assert len({*given, seed}) == 3


def test_c10_clients_have_keys_of_their_own() -> None:
    keys = [client_key(seed, partition) for seed in range(5) for partition in range(50)]
    assert len(set(keys)) == 250
    assert {len(bytes.fromhex(key)) for key in keys} == {16}


def test_c10_a_secret_makes_the_servers_draws_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    open_draws = client_key(3, 1), server_seed(3)
    public = model_seed(3), division_seed(3)
    found = {open_draws}
    for secret in ("one", "two"):
        monkeypatch.setenv("SFL_SECRET", secret)
        found.add((client_key(3, 1), server_seed(3)))
        assert (model_seed(3), division_seed(3)) == public
    assert len(found) == 3
    assert generator("cohort", server_seed(3)).random() != generator("cohort", 3).random()
    monkeypatch.setenv("SFL_SECRET", "")
    assert (client_key(3, 1), server_seed(3)) == open_draws
