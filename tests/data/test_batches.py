from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.data import batch_indices, chunks, client_samples, largest_batch, steps_per_epoch
from sfl_flower.data.batches import _order
from sfl_flower.errors import ConfigError, DataError

cases = given(
    key=st.text(max_size=32),
    round=st.integers(0, 10_000),
    n=st.integers(1, 60),
    batch_size=st.integers(1, 70),
)


@settings(deadline=None, max_examples=60)
@cases
def test_every_epoch_covers_every_sample_once(
    key: str, round: int, n: int, batch_size: int
) -> None:
    steps = steps_per_epoch(n, batch_size)
    for epoch in range(2):
        batches = [
            batch_indices(key, round, epoch * steps + step, n, batch_size) for step in range(steps)
        ]
        assert sorted(np.concatenate(batches).tolist()) == list(range(n))
        assert all(len(batch) == min(batch_size, n) for batch in batches[:-1])
        assert len(batches[-1]) > 1 or min(n, batch_size) == 1
        assert max(map(len, batches)) <= largest_batch(n, batch_size)


@settings(deadline=None, max_examples=30)
@cases
def test_a_batch_does_not_depend_on_what_was_asked_before(
    key: str, round: int, n: int, batch_size: int
) -> None:
    forwards = [batch_indices(key, round, s, n, batch_size).tolist() for s in range(5)]
    _order.cache_clear()
    backwards = [batch_indices(key, round, s, n, batch_size).tolist() for s in (4, 3, 2, 1, 0)]
    assert forwards == backwards[::-1]


def test_known_batch() -> None:
    # The rows of a batch are part of what makes runs comparable: they must not move by accident.
    assert batch_indices("1", 3, 0, 10, 4).tolist() == [7, 4, 8, 0]
    assert batch_indices("1", 3, 2, 10, 4).tolist() == [5, 1]


@pytest.mark.parametrize("change", [{"key": "b"}, {"round": 1}, {"step": 1}])
def test_another_word_gives_another_shuffle(change: dict[str, Any]) -> None:
    words: dict[str, Any] = {"key": "a", "round": 0, "step": 0, "n": 50, "batch_size": 50}
    assert batch_indices(**words).tolist() != batch_indices(**{**words, **change}).tolist()


def test_few_samples_give_all_of_them() -> None:
    assert sorted(batch_indices("", 0, 7, 3, 32).tolist()) == [0, 1, 2]


def test_a_batch_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        batch_indices("", 0, 0, 3, 3)[0] = 1


def test_errors() -> None:
    with pytest.raises(DataError, match="0 samples"):
        batch_indices("", 0, 0, 0, 4)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        batch_indices("", 0, 0, 5, 0)
    with pytest.raises(ConfigError, match="step is -1"):
        batch_indices("", 0, -1, 5, 2)
    with pytest.raises(ConfigError, match="chunk size is 0"):
        chunks(5, 0)


def test_steps_per_epoch_rounds_up_but_for_a_single_sample() -> None:
    assert [steps_per_epoch(n, 4) for n in (1, 4, 5, 6, 8, 9, 10)] == [1, 1, 1, 2, 2, 2, 3]
    assert [steps_per_epoch(n, 1) for n in (1, 2, 5)] == [1, 2, 5]


def test_e2_a_single_sample_that_is_left_joins_the_batch_before_it() -> None:
    whole = batch_indices("", 1, 0, 9, 9).tolist()
    assert batch_indices("", 1, 0, 9, 4).tolist() == whole[:4]
    assert batch_indices("", 1, 1, 9, 4).tolist() == whole[4:]
    assert [largest_batch(n, 4) for n in (1, 3, 4, 5, 6, 9)] == [4, 4, 4, 5, 4, 5]
    assert largest_batch(5, 1) == 1


def test_chunks_cover_in_order() -> None:
    assert list(chunks(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(chunks(0, 2)) == []


@pytest.mark.parametrize(
    ("held", "batch_size", "batches", "samples"),
    [
        (10, 4, 1, 4),
        (10, 4, 2, 8),
        (10, 4, 3, 10),  # the third is short
        (10, 4, 4, 14),  # and the next epoch begins
        (10, 4, 6, 20),
        (3, 4, 5, 15),  # every batch is all the client has
        (9, 4, 1, 4),
        (9, 4, 2, 9),  # the ninth is in the second
        (9, 4, 3, 13),
    ],
)
def test_samples_of_a_client(held: int, batch_size: int, batches: int, samples: int) -> None:
    assert client_samples(held, batch_size, batches) == samples


def test_samples_of_steps_are_those_of_the_batches() -> None:
    for held, batch, steps in itertools.product((1, 4, 5, 9, 10), (1, 2, 4, 50), range(12)):
        sizes = [len(batch_indices("", 1, step, held, batch)) for step in range(steps)]
        assert client_samples(held, batch, steps) == sum(sizes)
