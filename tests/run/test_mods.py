"""Flower's client mods: those that compose, and those that are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)

from sfl_flower import simulate
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.mods import Mod
from tests import tiny
from tests.local_grid import LocalGrid
from tests.tiny import Trial, begin, equal, start, train

pytestmark = pytest.mark.flower


class OwnDp(LocalDpMod):
    """A user's subclass of a mod that cannot work."""


DP = (1.0, 1.0, 1.0, 0.1)


def through(method: str, *mods: Mod) -> Trial:
    """Train with these mods around every message."""
    problem = tiny.task()
    trial = begin(problem, method)
    trial.grid = LocalGrid(make_client_app(lambda context: problem, mods=mods), 4)
    return start(trial)


def noting(seen: list[str]) -> Mod:
    """Return a mod that notes the type of each message."""

    def own(
        message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    return own


@pytest.mark.parametrize("method", METHODS)
def test_a5_mods_that_only_look_compose_with_every_method(method: str) -> None:
    seen: list[str] = []
    own = noting(seen)
    trial = through(method, message_size_mod, arrays_size_mod, own)
    assert equal(trial.model, train(tiny.task(), method).model)
    assert seen.count("query.join") == 4 and len(seen) == sum(trial.grid.log.values())


@pytest.mark.parametrize(
    ("mod", "name"),
    [
        (fixedclipping_mod, "fixedclipping_mod"),
        (adaptiveclipping_mod, "adaptiveclipping_mod"),
        (LocalDpMod(*DP), "LocalDpMod"),
        (OwnDp(*DP), "LocalDpMod"),
        (partial(fixedclipping_mod), "fixedclipping_mod"),
    ],
)
def test_a5_mods_that_break_the_exchanges_are_refused_by_name(mod: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"Flower's {name} does not work here: .*postprocess"):
        make_client_app(lambda context: tiny.task(), mods=[message_size_mod, mod])


def test_a_mod_of_a_users_own_may_have_the_name_of_one_of_flowers() -> None:
    def fixedclipping_mod(
        message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        return call_next(message, context)

    make_client_app(lambda context: tiny.task(), mods=[fixedclipping_mod])  # raises nothing


def test_what_is_no_mod_is_refused() -> None:
    mods: Any = ["message_size_mod"]
    with pytest.raises(ConfigError, match="mods holds 'message_size_mod', which cannot be called"):
        make_client_app(lambda context: tiny.task(), mods=mods)


def test_simulate_takes_mods_and_refuses_those_that_break_the_exchanges() -> None:
    seen: list[str] = []
    own = noting(seen)
    options: dict[str, Any] = {"clients": 2, "rounds": 1, "batch_size": 4, "partition": "iid"}
    simulate(tiny.task(clients=2), backend="inline", mods=[own], **options)
    assert seen.count("query.join") == 2 and len(seen) == 6
    with pytest.raises(ConfigError, match="Flower's fixedclipping_mod does not work here"):
        simulate(tiny.task(clients=2), mods=[fixedclipping_mod], **options)
