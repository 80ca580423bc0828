"""Arrays of a user, made plain, and kept in a file that the processes of a machine read."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl_flower.data.samples import Samples
from sfl_flower.errors import DataError

__all__ = ["load_arrays", "plain_array", "store_arrays"]

# What torch has no arithmetic for, and what holds its values.
_WIDER: dict[str, type[np.number[Any]]] = {
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
}


def plain_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Return an array of numbers that torch can take.

    Parameters
    ----------
    name : str
        What to call it in an error.
    value : array, tensor or nested list of numbers
        A tensor's device and graph are left behind; bfloat16 becomes float32, the byte order this
        machine's, 16 to 64 bit without a sign a signed type.

    Raises
    ------
    DataError
        Its rows differ in length, some of it is masked, or it holds texts or objects.
    """
    if isinstance(value, Tensor):
        value = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        value = value.cpu().resolve_conj().resolve_neg()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(value).sum())
        if masked:
            raise DataError(
                f"{name} is a masked array with {masked} masked values; "
                f"fill them ({name}.filled(0)) or leave their rows out."
            )
        value = value.data
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{name} is no array ({error}); its rows must be numbers, all of one shape."
        ) from error
    if array.dtype.kind in "US":
        example = str(array.reshape(-1)[0])[:40] if array.size else ""
        raise DataError(
            f"{name} holds texts such as {example!r}, not numbers; number labels from 0 "
            "(numpy.unique(labels, return_inverse=True)[1]) and turn inputs into numbers."
        )
    if array.dtype.hasobject:
        raise DataError(f"{name} holds Python objects; give an array of numbers.")
    if array.dtype.kind not in "biufc":
        raise DataError(f"{name} has dtype {array.dtype}; give an array of numbers.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    wider: type[np.number[Any]] | None = _WIDER.get(array.dtype.name)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        wider = np.float64
    return array if wider is None else array.astype(wider)


@cache
def _folder() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="sfl_flower-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves its parent's files alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def store_arrays(**arrays: npt.ArrayLike) -> Path:
    """Write arrays to a file that other processes of this machine can read.

    Returns
    -------
    Path
        An uncompressed ``.npz`` in a temporary folder; removed when this process ends.

    Raises
    ------
    DataError
        One cannot be made plain; see `plain_array`.
    """
    plain = {name: plain_array(name, array) for name, array in arrays.items()}
    path = _folder() / f"{uuid4().hex}.npz"
    with path.open("wb") as file:
        np.savez(file, **plain)  # type: ignore[arg-type]
    return path


def load_arrays(path: Path, split: Literal["train", "test"]) -> Samples:
    """Read ``x_<split>`` and ``y_<split>`` of an ``.npz`` file.

    Raises
    ------
    DataError
        The file is missing, is no ``.npz``, or lacks one of the two arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path}; data given as arrays can be read on the machine, and for as "
            "long as the process lives, that stored it."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It must be an .npz file with the arrays x_train, "
            "y_train, x_test and y_test."
        ) from error
    return Samples(torch.from_numpy(x), torch.from_numpy(y))
