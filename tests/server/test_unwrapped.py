"""Flower's wrappers around a strategy would do nothing; they are refused."""

from __future__ import annotations

import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.wire.flower import SUPERLINK, identity
from tests import tiny
from tests.tiny import begin, start

pytestmark = pytest.mark.flower

FIXED = {"noise_multiplier": 1.0, "clipping_norm": 0.1, "num_sampled_clients": 4}
ADAPTIVE = {"noise_multiplier": 0.1, "num_sampled_clients": 4}


@pytest.mark.parametrize(
    ("wrapper", "options"),
    [
        (DifferentialPrivacyServerSideFixedClipping, FIXED),
        (DifferentialPrivacyClientSideFixedClipping, FIXED),
        (DifferentialPrivacyServerSideAdaptiveClipping, ADAPTIVE),
        (DifferentialPrivacyClientSideAdaptiveClipping, ADAPTIVE),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a5_a_wrapper_that_would_do_nothing_is_refused(
    method: str, wrapper: type, options: dict[str, float]
) -> None:
    trial = begin(tiny.task(), method)
    wrapped = wrapper(trial.strategy, **options)
    name = type(trial.strategy).__name__
    says = f"round of {name} .* use dp_clip and dp_noise of ho_sfl, heron and decomfl"
    with identity(1, SUPERLINK), pytest.raises(ConfigError, match=says):
        wrapped.start(grid=trial.grid, initial_arrays=trial.strategy.arrays(), num_rounds=1)
    assert not trial.grid.log  # no client was asked for anything


def test_a5_after_a_refusal_the_strategy_itself_still_runs_and_is_refused_again() -> None:
    trial = begin(tiny.task(), rounds=1)
    wrapped = DifferentialPrivacyServerSideFixedClipping(trial.strategy, 1.0, 0.1, 4)
    arrays = trial.strategy.arrays()
    for _ in range(2):
        with identity(1, SUPERLINK), pytest.raises(ConfigError, match="Call start"):
            wrapped.start(trial.grid, arrays, 1)
        if not trial.strategy.round:
            start(trial)
    assert [record.replies for record in trial.strategy.records[1:]] == [4]
