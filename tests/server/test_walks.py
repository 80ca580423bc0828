"""The walk: steps of forward-only clients that are as long and go where the seed says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.zo import client_stream, drawn_signs, run_key, step_keys
from tests import tiny
from tests.local_grid import values
from tests.tiny import CLIENT_NAMES, begin, flat, train

ALONE: dict[str, Any] = {"clients": 1, "rounds": 1, "client_lr": 0.1, "direction": "rademacher"}
GOLDEN = [-1, 1, -1, -1, -1, 1, 1, 1, 1, -1, 1, 1]
"""By the formula of docs/directions.md, written again with `hashlib` alone."""
ONE_STEP: dict[str, dict[str, Any]] = {
    "ho_sfl": {"probes": 1},
    "heron": {"probes": 1, "client_lr_schedule": "constant", "client_lr_warmup": 0},
    "zo_sfl": {"probes": 1, "local_steps": 1, "client_optimizer": "sgd", "client_weight_decay": 0},
    "mu_splitfed": {"global_lr": 1.0, "client_lr": 1.0},
    "decomfl": {"probes": 1},
    "u_shaped": {"probes": 1},
}
"""By method: settings under which a client takes one step of plain SGD along one direction."""


def moved(method: str, seed: int, walk: bool) -> np.ndarray:
    """Return how far one client's half went in one round."""
    options = {**ALONE, **ONE_STEP[method], "seed": seed, "walk": walk}
    before = begin(tiny.task([tiny.samples(4)]), method, **options).model
    after = train(tiny.task([tiny.samples(4)]), method, **options).model
    return (flat(after, CLIENT_NAMES) - flat(before, CLIENT_NAMES)).numpy()


@pytest.mark.parametrize("method", ONE_STEP)
def test_a_step_is_as_long_and_goes_either_way(method: str) -> None:
    ways = set()
    for seed in range(8):
        told, drawn = (moved(method, seed, walk) for walk in (False, True))
        assert np.abs(told).max() > 1e-4
        way = float(np.sign(told @ drawn))
        np.testing.assert_allclose(drawn, way * told, rtol=0, atol=1e-6)
        ways.add(way)
    assert ways == {1.0, -1.0}


def test_every_method_with_forward_only_clients_has_it_and_no_other() -> None:
    have = {name for name, method in METHODS.items() if method.facts.client == "zeroth order"}
    assert have == set(ONE_STEP)
    for name in METHODS:
        if name in have:
            _, _, settings, _ = read_options({"method": name, "walk": "true"})
            assert settings.to_dict()["walk"] is True
            _, _, again, _ = read_options({"method": name, **settings.to_dict()})
            assert again == settings
        else:
            with pytest.raises(ConfigError, match="Unknown option of method"):
                read_options({"method": name, "walk": "true"})


@pytest.mark.parametrize("options", [{}, {"scale": "spread", "clip_norm": 0.5}])
def test_scalars_of_heron_travel_as_they_were_measured(options: dict[str, Any]) -> None:
    """In the first round of a walk the first step's are those of the method, later ones are not."""
    options = {
        "local_steps": 2,
        "probes": 3,
        "clients": 1,
        "rounds": 1,
        "client_lr": 1.0,
        **options,
    }
    both = [train(tiny.task([tiny.samples(8)]), "heron", walk=w, **options) for w in (False, True)]
    told, walked = (
        next(values(c["arrays"]["scalars"]) for kind, _, c in trial.grid.replies if kind == "local")
        for trial in both
    )
    assert np.array_equal(told[0], walked[0]) and np.abs(told[0]).min() > 0
    assert not np.array_equal(told[1], walked[1])
    says = [
        {c["config"].get("walk") for kind, _, c in trial.grid.requests if kind == "local"}
        for trial in both
    ]
    assert says == [{None}, {True}]  # a method says nothing of it


def test_server_halves_of_zeroth_order_are_no_part_of_a_walk() -> None:
    """In the first step of ZO-SFL the server half moves as without, the client half does not."""
    options = {**ALONE, **ONE_STEP["zo_sfl"], "probes": 8}
    found = [
        train(tiny.task([tiny.samples(4)]), "zo_sfl", walk=w, **options) for w in (False, True)
    ]
    for name, value in found[0].model.items():
        assert bool((value == found[1].model[name]).all()) == (name not in CLIENT_NAMES), name


def test_signs_are_those_of_their_keys() -> None:
    """They are a format: a client and a server of different versions draw the same."""
    keys = step_keys(3, 1, client_stream(2), 12)
    signs = drawn_signs(run_key("walk", 5), keys)
    assert signs.dtype == np.float32
    assert signs.tolist() == GOLDEN
    assert drawn_signs(run_key("walk", 5), keys[4:6]).tolist() == GOLDEN[4:6]
    many = step_keys(1, 0, 1, 4000)
    found = drawn_signs(run_key(0), many)
    assert set(found.tolist()) == {1.0, -1.0}
    assert abs(float(found.mean())) < 4 / 4000**0.5
    assert abs(float(found @ drawn_signs(run_key(1), many))) < 4 * 4000**0.5
    assert drawn_signs(run_key(0), []).shape == (0,)
