"""Options that several methods have: one range and one wording each, and what is warned of."""

from __future__ import annotations

from typing import Any

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.server import summary
from sfl_flower.server.settings import ClientOptimizerSettings, LocalStepsSettings
from tests import tiny
from tests.tiny import begin

WITH_OPTIMIZER = [
    name for name, m in METHODS.items() if issubclass(m.settings, ClientOptimizerSettings)
]


@pytest.mark.parametrize("value", [-1.0, 1001.0])
@pytest.mark.parametrize("name", WITH_OPTIMIZER)
def test_weight_decay_has_one_range_and_one_wording(name: str, value: float) -> None:
    says = rf"^client_weight_decay is {value}; it must be in \[0, 1000\]\.$"
    with pytest.raises(ConfigError, match=says):
        METHODS[name].settings(client_weight_decay=value)  # type: ignore[call-arg]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(summary._log, "warning", found.append)
    return found


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (
            "splitfed_v2",
            {"client_momentum": 0.9},
            "client_momentum=0.9 has no effect and the step is plain SGD",
        ),
        ("cse_fsl", {"client_optimizer": "adam"}, "adam moves every parameter by client_lr"),
        ("fsl_sage", {"client_optimizer": "adamw"}, "adamw moves every parameter by client_lr"),
        ("heron", {"client_optimizer": "momentum"}, "client_momentum=0.9 has no effect"),
        ("heron", {"client_optimizer": "radazo"}, "radazo moves every parameter by client_lr"),
        ("heron", {"client_optimizer": "hiso"}, "nothing is learned of the curvature"),
        ("fedavg", {"local_steps": 1}, "client_momentum=0.9 has no effect"),
        ("zo_sfl", {"local_steps": 1}, "adamw moves every parameter by client_lr"),
    ],
)
def test_d4_an_optimiser_that_begins_anew_at_every_step_is_warned_of(
    method: str, options: dict[str, Any], says: str, warnings: list[str]
) -> None:
    begin(tiny.task(), method, **options).strategy.summary()
    (found,) = (text for text in warnings if "begins anew at every step" in text)
    assert says in found and "set client_state=kept or more local_steps" in found
    warnings.clear()
    for more in ({"client_state": "kept"}, {"local_steps": 2}, {"client_momentum": 0.0}):
        kind = {"uplink": "weights"} if method == "heron" else {}
        given: dict[str, Any] = {**options, **kind, **more}
        begin(tiny.task(), method, **given).strategy.summary()
    assert sum("begins anew" in text for text in warnings) == int("client_momentum" not in says)


def test_a_cone_without_a_momentum_is_warned_of(warnings: list[str]) -> None:
    for more in ({}, {"local_steps": 2}, {"client_state": "kept", "uplink": "weights"}):
        begin(tiny.task(), "heron", cone=0.5, **more).strategy.summary()
    (found,) = (text for text in warnings if "cone=0.5 has no effect" in text)
    assert "set more local_steps, or client_state=kept with uplink=weights" in found


@pytest.mark.parametrize("method", METHODS)
def test_d4_no_method_warns_at_its_defaults(method: str) -> None:
    settings = METHODS[method].settings()
    assert settings.warnings() == []
    if issubclass(METHODS[method].settings, LocalStepsSettings):
        options = settings.to_dict()
        fresh = options["local_steps"] == 1 and method != "heron"  # whose SGD has none
        assert options["client_momentum"] == (0.0 if fresh else 0.9)


@pytest.mark.parametrize("method", ["heron", "ho_sfl", "frozen", "decomfl"])
def test_d4_nothing_is_said_where_the_step_is_the_same(method: str, warnings: list[str]) -> None:
    """Plain SGD by default, or an optimiser whose state follows the journal."""
    options: dict[str, Any] = {"client_optimizer": "adam"} if method == "ho_sfl" else {}
    begin(tiny.task(), method, **options).strategy.summary()
    assert not [text for text in warnings if "begins anew" in text]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_d4_what_the_warning_says_is_so(optimizer: str) -> None:
    """One fresh step with momentum is plain SGD to the bit; Adam's is the rate, with a sign."""
    options: dict[str, Any] = {"client_optimizer": optimizer, "client_lr": 0.01, "rounds": 1}
    options["client_momentum"] = 0.9
    options["clients"] = 1
    trial = begin(tiny.task([tiny.samples(4)]), "splitfed_v2", **options)
    before = trial.model["first.weight"]
    moved = tiny.start(trial).model["first.weight"] - before
    if optimizer == "sgd":
        plain = tiny.train(
            tiny.task([tiny.samples(4)]), "splitfed_v2", **{**options, "client_momentum": 0.0}
        )
        assert (plain.model["first.weight"] - before).equal(moved)
    else:
        assert moved.abs().sub(0.01).abs().max() < 1e-4
