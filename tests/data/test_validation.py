from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sfl_flower.data import PARTITIONS, PartitionSpec, hold_back, partition
from sfl_flower.errors import ConfigError, DataError

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def test_d3_every_class_gives_its_share() -> None:
    trained, held = hold_back(LABELS, 0.1, 3)
    assert np.bincount(LABELS[held]).tolist() == [5, 3, 2]
    assert np.array_equal(np.sort(np.concatenate([trained, held])), np.arange(100))
    assert (np.diff(held) > 0).all() and (np.diff(trained) > 0).all()
    again, other = (hold_back(LABELS, 0.1, seed)[1] for seed in (3, 4))
    assert np.array_equal(held, again) and not np.array_equal(held, other)


def test_d3_what_rounding_leaves_goes_where_it_took_most() -> None:
    """0.25 of 7, 5 and 3 rows: 1.75, 1.25 and 0.75, four rows in all."""
    labels = np.repeat([0, 1, 2], [7, 5, 3])
    assert np.bincount(labels[hold_back(labels, 0.25, 0)[1]]).tolist() == [2, 1, 1]


def test_d3_every_class_keeps_a_row_to_train_on() -> None:
    """Of the 13, 6.5 are asked for; the class of a single row gives none of them."""
    labels = np.array([0] * 12 + [1])
    trained, held = hold_back(labels, 0.5, 0)
    assert set(labels[trained]) == {0, 1} and set(labels[held]) == {0}


def test_d3_a_share_that_comes_to_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"validation is 0\.1, which holds back none of 4"):
        hold_back(np.arange(4), 0.1, 0)


@pytest.mark.parametrize("name", PARTITIONS)
def test_d3_no_client_is_given_what_is_held_back(name: str) -> None:
    spec = PartitionSpec(name, clients=3, seed=5, alpha=5.0, validation=0.1, classes_per_client=2)
    trained, held = hold_back(LABELS, 0.1, 5)
    parts = partition(spec, LABELS)
    rows = np.concatenate(parts)
    assert not set(rows.tolist()) & set(held.tolist())
    if name != "shard":  # which may leave a remainder
        assert np.array_equal(np.sort(rows), trained)
    # The training part is divided as if it were all there is.
    alone = partition(replace(spec, validation=0.0), LABELS[trained])
    for part, inner in zip(parts, alone, strict=True):
        assert np.array_equal(part, trained[inner])


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan"), "0.1"])
def test_d3_shares_out_of_range(share: Any) -> None:
    with pytest.raises(ConfigError, match=r"validation is .*; it must be in \[0, 0\.5\]"):
        PartitionSpec(validation=share)
