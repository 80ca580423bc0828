from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfl_flower.errors import WireError
from sfl_flower.wire import pack_state, state_bytes, unpack_state
from sfl_flower.wire.weights import WEIGHT_DTYPES
from tests.local_grid import roundtrip
from tests.wire.contents import SETUP

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    values = torch.arange(count).reshape(shape) - 1
    return (values % 2).bool() if dtype == torch.bool else values.to(dtype)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=4),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple)),
        max_size=6,
    )
)
def test_any_state_dict_comes_back(forms: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    state = {name: tensor(dtype, shape) for name, (dtype, shape) in forms.items()}
    packed = pack_state(state)
    assert equal(unpack_state(packed, state), state)
    assert sum(array.nbytes for array in packed.values()) == state_bytes(state)
    assert all(str(array.dtype) in WEIGHT_DTYPES and array.ndim == 1 for array in packed.values())


def test_every_dtype_travels_through_flower() -> None:
    from sfl_flower.wire.splitfed import StepRequest

    state = {str(dtype): tensor(dtype, (2, 3)) for dtype in DTYPES}
    state["batches"] = torch.tensor(7)  # BatchNorm's counter has no dimension
    request = StepRequest(1, 0, 1, 1, SETUP, "{}", False, weights=pack_state(state))
    back = StepRequest.from_content(roundtrip(request.to_content()))
    assert equal(unpack_state(back.weights, state), state)


def test_bits_are_kept() -> None:
    odd = torch.tensor([-0.0, 1e-45, 3.4e38], dtype=torch.float32)
    back = unpack_state(pack_state({"a": odd}), {"a": odd})["a"]
    assert torch.equal(back.view(torch.int32), odd.view(torch.int32))


def test_what_is_unpacked_is_a_copy() -> None:
    state = {"a": torch.ones(2)}
    packed = pack_state(state)
    unpack_state(packed, state)["a"].zero_()
    assert packed["float32"].tolist() == [1.0, 1.0]


def test_other_models_are_refused() -> None:
    state = {"a": torch.ones(2), "n": torch.tensor(1)}
    packed = pack_state(state)
    with pytest.raises(WireError, match=r"hold the dtypes .*'float32'.*run different models"):
        unpack_state({"float32": packed["float32"]}, state)
    with pytest.raises(WireError, match="2 values of float32, this model has 3"):
        unpack_state(packed, {"a": torch.ones(3), "n": torch.tensor(1)})
    with pytest.raises(WireError, match=r"'c' has dtype torch\.complex64, which does not travel"):
        pack_state({"c": torch.zeros(1, dtype=torch.complex64)})
    # An array under a name whose dtype it does not have.
    swapped = {"float32": np.ones(2, np.float64), "int64": packed["int64"]}
    with pytest.raises(WireError, match="float64"):
        unpack_state(swapped, state)


def test_a_bfloat16_that_is_not_finite_is_refused() -> None:
    state = {"a": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16)}
    with pytest.raises(WireError, match="not finite"):
        unpack_state(pack_state(state), state)
