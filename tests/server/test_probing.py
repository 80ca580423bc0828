"""What is said of scalars: that all of them are 0, or one too large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfl_flower.errors import WireError
from sfl_flower.server.probing import check_scalars
from sfl_flower.zo import Probing
from tests import tiny
from tests.tiny import begin, start

PROBED: dict[str, dict[str, Any]] = {
    "ho_sfl": {},
    "heron": {"local_steps": 2, "probes": 2},
    "decomfl": {"local_steps": 2},
    "zo_sfl": {"local_steps": 2},
    "mu_splitfed": {},
}
LOST = "Every scalar of every client is exactly 0, so zeroth order moves nothing: a probe of mu = "


@pytest.mark.parametrize("method", PROBED)
def test_e12_a_round_whose_scalars_are_all_0_is_noted(method: str) -> None:
    trial = start(begin(tiny.task(), method, rounds=2, mu=1e-12, **PROBED[method]))
    assert f"{LOST}1e-12 is lost in the rounding of float32; raise mu" in trial.notes
    assert all(record.notes for record in trial.strategy.records[1:])


@pytest.mark.parametrize("method", PROBED)
def test_e12_a_round_with_scalars_is_not(method: str) -> None:
    trial = start(begin(tiny.task(), method, rounds=2, mu=1e-2, **PROBED[method]))
    assert "exactly 0" not in trial.notes


def test_a_scalar_beyond_the_limit_is_refused() -> None:
    scalars = np.array([[0.5, -2.0]], np.float32)
    check_scalars(scalars, Probing(2, mu=1e-2), 200.0)
    with pytest.raises(WireError, match=r"\|v\| / mu = 200, more than scalar-limit = 199"):
        check_scalars(scalars, Probing(2, mu=1e-2), 199.0)
