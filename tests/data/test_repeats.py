from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from sfl_flower.data import Samples, seeded_draws
from sfl_flower.data.identity import batch_digest, fingerprint
from sfl_flower.data.repeats import check_augment, check_same, check_transform
from sfl_flower.data.seeding import global_states
from sfl_flower.errors import DataError

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20) % 3
_OWN = np.random.default_rng(5)


def _own(x: Tensor) -> Tensor:
    return x + float(_OWN.random())


@pytest.mark.parametrize("draw", [lambda: torch.rand(1).item(), random.random, np.random.random])
def test_e1_every_global_generator_is_seeded_and_put_back(draw: object) -> None:
    assert callable(draw)
    with seeded_draws("batch", 1, 2, 3):
        first = draw()
    before = global_states()
    with seeded_draws("batch", 1, 2, 3):
        assert draw() == first
    with seeded_draws("batch", 1, 2, 4):
        assert draw() != first
    assert global_states() == before


@pytest.mark.parametrize(
    "again",
    [Samples(X.flip(0), Y.flip(0)), Samples(X, Y.flip(0)), Samples(X.double(), Y)],
)
def test_e1_data_that_differ_the_second_time_are_refused_with_what_to_seed(again: Samples) -> None:
    check_same("train() of task 'a'", Samples(X, Y), Samples(X.clone(), Y))
    with pytest.raises(DataError, match=r"train\(\) of task 'a' returns other .*manual_seed.*sort"):
        check_same("train() of task 'a'", Samples(X, Y), again)


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: x + torch.rand(1),
        lambda x: x if random.random() < 0.5 else x.flip(1),
        lambda x: x + np.random.rand(),
        _own,
    ],
)
def test_e1_a_random_transform_is_refused_and_augment_is_named(transform: object) -> None:
    assert callable(transform)
    check_transform("a", lambda x: x / 2, X)
    with pytest.raises(DataError, match=r"transform of task 'a' is random.*`augment=`"):
        check_transform("a", transform, X)


def test_e1_an_augmentation_follows_the_seeded_generators_alone() -> None:
    check_augment("a", lambda x: x + torch.rand(len(x), 1), X)
    with pytest.raises(DataError, match="augment of task 'a' gives other results"):
        check_augment("a", _own, X)
    with pytest.raises(DataError, match=r"augment .* shape \[20, 2\] into \[10, 2\]"):
        check_augment("a", lambda x: x[:10], X)


def test_a_batch_s_digest_sees_values_shapes_dtypes_and_labels() -> None:
    one = batch_digest(X, Y)
    assert batch_digest(X.t().contiguous().t(), Y.clone()) == one
    others = [
        (X + 1, Y), (X.reshape(20, 2, 1), Y), (X.double(), Y), (X, Y + 1), (X[:0], Y[:0]),
    ]  # fmt: skip
    assert len({one, *(batch_digest(*other) for other in others)}) == 6


def test_a_function_s_fingerprint_is_its_code_and_what_it_holds() -> None:
    def adds(n: int) -> object:
        return lambda x: x + n

    assert fingerprint(adds(1)) == fingerprint(adds(1))
    assert fingerprint(adds(1)) != fingerprint(adds(2))
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x - 1)
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint(object()) == fingerprint(object())  # no address enters
