"""Labels travel as the smallest integers that hold them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl_flower.errors import WireError
from sfl_flower.wire.draft import Draft
from sfl_flower.wire.labels import INTEGERS, smallest
from sfl_flower.wire.reader import Reader


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([0, 255], "uint8"),
        ([-1, 127], "int8"),
        ([-100, 128], "int16"),
        ([0, 65_535], "uint16"),
        ([0, 65_536], "uint32"),
        ([-100, 49_151], "int32"),
        ([-1, 2**31], "int64"),
        ([0, 2**32], "int64"),
        ([], "uint8"),
    ],
)
def test_the_dtype_follows_from_the_values(labels: list[int], dtype: str) -> None:
    assert smallest(np.array(labels, np.int64)).dtype == dtype


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_they_come_back_as_they_were(labels: list[int]) -> None:
    y, draft = np.array(labels, np.int64), Draft()
    draft.samples("y", y, "labels")
    back = Reader(draft.content(), "reply").samples("y", "labels")
    assert back.dtype == np.int64 and np.array_equal(back, y)
    assert draft.booked.get("labels", 0) == smallest(y).nbytes


def test_what_is_no_integer_is_refused() -> None:
    draft = Draft()
    draft.array("y", np.ones(3, np.float32), "labels")
    with pytest.raises(WireError, match=f"has 'y' as float32, expected one of {INTEGERS[0]}, "):
        Reader(draft.content(), "reply").samples("y", "labels")
    draft = Draft()
    draft.array("y", np.ones(3, np.uint8), "labels")
    draft.array("y.lengths", np.ones(3, np.uint8), "labels")
    draft.setting("y.positions", 4)
    with pytest.raises(WireError, match="'y' as uint8, in which nothing can be left out"):
        Reader(draft.content(), "reply").samples("y", "labels")
