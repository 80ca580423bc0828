"""ε as dp-accounting has it, and the amounts that follow from it."""

from __future__ import annotations

import sys

import dp_accounting
import pytest
from dp_accounting import rdp

from sfl_flower.errors import ConfigError
from sfl_flower.privacy.accounting import epsilon_of, most_times, noise_for


@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (0.5, 1), (4.0, 16), (5.0, 200), (50.0, 7)])
def test_epsilon_is_that_of_the_accountant(noise: float, times: int) -> None:
    """Many Gaussian mechanisms are one of less noise; Rényi's bound lies above it, not far."""
    found = epsilon_of(noise, times, 1e-5)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), times)
    bound = rdp.RdpAccountant().compose(event).get_epsilon(1e-5)
    assert found <= bound <= 1.2 * found + 0.05


def test_epsilon_of_known_cases() -> None:
    """The analytic Gaussian mechanism: of σ = 1 at δ = 1e-5 it is 4.3772."""
    assert epsilon_of(1.0, 1, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert epsilon_of(4.0, 16, 1e-5) == epsilon_of(1.0, 1, 1e-5)
    often = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), 16)
    exact = dp_accounting.pld.PLDAccountant().compose(often)
    assert epsilon_of(4.0, 16, 1e-5) == pytest.approx(exact.get_epsilon(1e-5), abs=1e-3)
    assert epsilon_of(1.0, 0, 1e-5) == 0.0
    assert epsilon_of(1.0, 2, 1e-5) > epsilon_of(1.0, 1, 1e-5) > epsilon_of(1.0, 1, 1e-3)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 2.0, 6.0, 100.0])
@pytest.mark.parametrize("times", [1, 37, 1000])
def test_calibrated_noise_allows_just_what_it_is_for(epsilon: float, times: int) -> None:
    noise = noise_for(epsilon, times, 1e-5)
    assert epsilon_of(noise, times, 1e-5) == pytest.approx(epsilon, rel=1e-6)
    assert most_times(epsilon, noise, 1e-5) == times
    assert most_times(epsilon, noise * 0.999, 1e-5) < times


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"dp-accounting, .* pip install 'sfl-flower\[dp\]', or"):
        noise_for(2.5, 3, 1e-5)
    with pytest.raises(ConfigError, match="dp-accounting"):
        epsilon_of(2.5, 3, 1e-6)
