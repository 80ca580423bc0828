"""How a mini-batch is probed: one value with one legal range each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.server.probing import DirectionSettings
from sfl_flower.strategies.decomfl import DeComFLSettings
from sfl_flower.strategies.heron import HERONSettings
from sfl_flower.strategies.ho_sfl import HOSFLSettings
from sfl_flower.strategies.mu_splitfed import MUSplitFedSettings
from sfl_flower.strategies.zo_sfl import ZOSFLSettings
from sfl_flower.wire.message import Request
from sfl_flower.zo import ESTIMATORS, Probing
from tests.wire.contents import MESSAGES

BAD: list[tuple[dict[str, Any], str]] = [
    ({"probes": 0}, r"probes is 0; it must be in \[1, 4096\]"),
    ({"probes": 4097}, "probes is 4097"),
    ({"mu": 0.0}, r"mu is 0\.0; it must be in \[1e-12, 1e\+06\]"),
    ({"mu": 1e7}, "mu is 10000000.0"),
    ({"mu": float("nan")}, "mu is nan"),
    ({"mu": float("inf")}, "mu is inf"),
    ({"law": "cauchy"}, "direction is 'cauchy'; it must be one of rademacher, gaussian, sphere"),
    ({"estimator": "x"}, "estimator is 'x'; it must be one of forward, central"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_what_is_out_of_range_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(Probing(), **change)


@pytest.mark.parametrize("change", [{"probes": 4096}, {"mu": 1e-12}, {"mu": 1e6}])
def test_the_ends_of_a_range_are_legal(change: dict[str, Any]) -> None:
    replace(Probing(), **change)


def test_forwards_of_a_mini_batch() -> None:
    assert [Probing(5, estimator=name).forwards for name in ("forward", "central")] == [6, 10]
    assert [ESTIMATORS[name].unit(0.5) for name in ("forward", "central")] == [0.5, 0.5]


@pytest.mark.parametrize(
    "kind", [HOSFLSettings, HERONSettings, DeComFLSettings, ZOSFLSettings, MUSplitFedSettings]
)
def test_b8_every_method_with_probes_has_the_same_options_and_ranges(
    kind: type[DirectionSettings],
) -> None:
    settings = kind()
    assert settings.probing().mu == settings.mu
    for change, says in BAD:
        own = {{"law": "direction"}.get(name, name): value for name, value in change.items()}
        if own.keys() <= vars(settings).keys():
            with pytest.raises(ConfigError, match=says):
                replace(settings, **own)


def test_no_request_says_of_an_estimator_anything_but_its_name() -> None:
    asked = [message for message in MESSAGES.values() if isinstance(message, Request)]
    assert sum(hasattr(message, "probing") for message in asked) > 8
    for message in asked:
        names = set(message.to_content().config_records["config"])
        wanted = {"probes", "law", "mu", "estimator"} if hasattr(message, "probing") else set()
        assert names & {"probes", "law", "mu", "estimator", "central"} == wanted
