from __future__ import annotations

from typing import Any

import pytest

from sfl_flower import profile
from sfl_flower.attacks.measures import check_package
from sfl_flower.attacks.shown import error_left
from sfl_flower.errors import ConfigError
from sfl_flower.profiling.leakage import Leakage
from sfl_flower.profiling.tables import markdown_profile, profile_numbers
from sfl_flower.tasks import load_task
from tests import tiny

SHARES = {"first": 0.1, "second": 0.6, "third": 0.8}


class Row:
    """What `Leakage` asks of a profile of a cut."""

    def __init__(self, at: str) -> None:
        self.at = at


ROWS: list[Any] = [Row(at) for at in (*SHARES, "(whole model)")]


def test_cuts_that_show_more_are_left_out_of_the_advice() -> None:
    found = Leakage(SHARES, 0.5)
    assert [row.at for row in found.allowed(ROWS)] == ["second", "third", "(whole model)"]
    assert found.advice()[-1] == "Left out, below 0.5: first."


def test_without_a_limit_all_are_allowed() -> None:
    found = Leakage(SHARES)
    assert found.allowed(ROWS) == ROWS
    assert len(found.advice()) == 1
    assert "most at 'first'" in found.advice()[0]
    assert "least at 'third'" in found.advice()[0]


def test_a_limit_that_no_cut_meets_says_which_one_comes_nearest() -> None:
    with pytest.raises(ConfigError, match=r"The most is 0\.8, at 'third'"):
        Leakage(SHARES, 0.9).allowed(ROWS)


def test_a_deeper_cut_of_the_digits_shows_less_and_is_what_is_advised() -> None:
    check_package()
    task = load_task("digits", model="conv")
    found = profile(
        task, cuts=["conv1", "tanh1"], seconds=0.0, batch_size=8, shown=error_left, least_error=0.3
    )
    assert found.leakage is not None
    assert found.leakage.shares["conv1"] < 0.05 < 0.3 < found.leakage.shares["tanh1"]
    assert "cut at 'tanh1'" in found.advice[0]
    assert "What smashed data show" in markdown_profile(found)
    assert profile_numbers(found)["error_left_of_guess"] == found.leakage.shares
    assert profile(task, cuts=["tanh1"], seconds=0.0).leakage is None


def test_a_model_has_no_samples_to_attack() -> None:
    with pytest.raises(ConfigError, match="profile a task, not a model"):
        profile(tiny.model(), tiny.samples(4).x, shown=error_left)


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leakage is -1"):
        profile(load_task("digits"), cuts=["tanh1"], seconds=0.0, least_error=-1.0)
