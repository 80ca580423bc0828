from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.data.arrays import load_arrays, plain_array, store_arrays
from sfl_flower.errors import DataError


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["cat", "dog"], r"y_train holds texts such as 'cat'.*return_inverse=True"),
        ([[1, 2], [3]], "y_train is no array .* one shape"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), r"1 masked values.*y_train\.filled\(0\)"),
        (np.array([{}]), "y_train holds Python objects"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), r"dtype datetime64\[D\]"),
        (np.zeros(2, dtype=[("a", "f4")]), "give an array of numbers"),
    ],
)
def test_e10_arrays_that_are_no_numbers_are_refused_with_the_remedy(
    value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        plain_array("y_train", value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1, 2], dtype=">f4"), np.float32),
        (np.array([1, 2], dtype=">i8"), np.int64),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), np.float32),
        (torch.tensor([1.0, 2.0], requires_grad=True), np.float32),
        (torch.tensor([1.0, 2.0]).to_sparse(), np.float32),
        (np.array([1, 2], dtype=np.uint16), np.int32),
        (np.array([1, 2], dtype=np.uint32), np.int64),
        (np.array([1, 2], dtype=np.longdouble), np.float64),
        (np.ma.masked_array([1.0, 2.0], [False, False]), np.float64),
        ([1, 2], np.int64),
    ],
)
def test_e10_arrays_of_numbers_in_every_form_become_plain(value: Any, dtype: Any) -> None:
    found = plain_array("x", value)
    assert (found.dtype, found.tolist(), type(found)) == (dtype, [1, 2], np.ndarray)
    assert torch.from_numpy(found).tolist() == [1, 2]


def test_e10_big_endian_arrays_come_back_as_they_went() -> None:
    x = np.arange(6, dtype=">f4").reshape(3, 2)
    path = store_arrays(x_train=x, y_train=np.array([0, 1, 0], ">i4"), x_test=x[:1], y_test=[1])
    assert load_arrays(path, "train").x.tolist() == x.tolist()
    assert load_arrays(path, "train").y.tolist() == [0, 1, 0]
