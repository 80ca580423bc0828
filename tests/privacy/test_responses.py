from __future__ import annotations

import math

import numpy as np
import pytest

from sfl_flower.data import generator
from sfl_flower.privacy.responses import kept_share, randomised


def test_the_share_of_labels_that_stay_is_that_of_the_formula() -> None:
    assert kept_share(math.log(9), 10) == pytest.approx(0.5)  # 9 / (9 + 9)
    assert kept_share(math.log(3), 2) == pytest.approx(0.75)  # 3 / (3 + 1)
    assert kept_share(1e3, 10) == 1.0


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_label_makes_an_answer_more_than_e_to_the_epsilon_times_as_likely(classes: int) -> None:
    kept = kept_share(1.5, classes)
    other = (1 - kept) / (classes - 1)
    assert kept / other == pytest.approx(math.exp(1.5))


def test_answers_have_the_stated_frequencies() -> None:
    y = np.full(200_000, 2)
    told = randomised(y, math.log(9), 10, generator("test", 0))
    counts = np.bincount(told, minlength=10) / len(y)
    assert counts[2] == pytest.approx(0.5, abs=0.005)
    assert np.delete(counts, 2) == pytest.approx(np.full(9, 0.5 / 9), abs=0.003)


def test_what_is_no_class_stays_and_nothing_leaves_the_classes() -> None:
    y = np.tile(np.array([[0, -100, 1]]), (500, 1))
    told = randomised(y, 0.1, 2, generator("test", 1), -100)
    assert (told[:, 1] == -100).all()
    assert set(told[:, [0, 2]].ravel().tolist()) == {0, 1}


def test_one_class_has_nothing_to_hide() -> None:
    assert not randomised(np.zeros(9, np.int64), 0.1, 1, generator("test", 2)).any()
