from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sfl_flower.data import Samples, check_samples
from sfl_flower.data.arrays import load_arrays, store_arrays
from sfl_flower.errors import DataError

X = torch.zeros(4, 2)
Y = torch.tensor([0, 1, 2, 1])


def test_take() -> None:
    samples = Samples(torch.arange(4), Y)
    assert samples.take([3, 1]).x.tolist() == [3, 1]
    assert samples.take(np.array([2])).y.tolist() == [2]
    assert len(samples.take(slice(1, 3))) == 2


def test_take_accepts_read_only_rows() -> None:
    rows = np.array([1, 0])
    rows.flags.writeable = False
    assert Samples(torch.arange(4), Y).take(rows).x.tolist() == [1, 0]


def test_dtypes_that_training_needs() -> None:
    checked = check_samples(Samples(X.double(), Y.to(torch.uint8)), 3, "the set")
    assert (checked.x.dtype, checked.y.dtype) == (torch.float32, torch.int64)
    pixels = torch.zeros(4, 1, dtype=torch.uint8)
    assert check_samples(Samples(pixels, Y), 3, "the set").x.dtype == torch.uint8


NAN = X.clone()
NAN[2, 0] = float("nan")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:3], "there are 3 labels"),
        (X[:0], Y[:0], "no samples in the set"),
        (X, torch.zeros(4, 2, dtype=torch.int64), r"shape \[4, 2\]"),
        (X, Y.float(), "must be integers"),
        (X, torch.tensor([0, 1, 3, 7]), "2 of 4 labels .* 3 classes .* first is 3 at row 2"),
        (X, torch.tensor([0, -1, 0, 0]), "1 of 4 labels .* first is -1 at row 1"),
        (NAN, Y, "1 of 4 inputs .* first is row 2"),
        (X.numpy(), Y, "torch.from_numpy"),
    ],
)
def test_what_cannot_be_trained_on(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_samples(Samples(x, y), 3, "the set")


def test_arrays_come_back_as_they_went() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = store_arrays(x_train=x, y_train=[0, 1, 0], x_test=x[:1], y_test=[1])
    assert np.array_equal(load_arrays(path, "train").x.numpy(), x)
    assert load_arrays(path, "test").y.tolist() == [1]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*none\.npz"):
        load_arrays(tmp_path / "none.npz", "train")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "b.npz").write_bytes(b"hello")
    np.savez(tmp_path / "c.npz", x_train=np.zeros(1))
    np.save(tmp_path / "d.npy", np.zeros(1))
    for name in ("a.npz", "b.npz", "c.npz", "d.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            load_arrays(tmp_path / name, "train")


def test_objects_are_refused() -> None:
    with pytest.raises(DataError, match="x_train holds Python objects"):
        store_arrays(x_train=np.array([{}]))
