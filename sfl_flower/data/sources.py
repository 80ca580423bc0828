"""Samples of data sets in the forms that other libraries have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from sfl_flower.data.arrays import plain_array
from sfl_flower.data.samples import Samples
from sfl_flower.errors import DataError

__all__ = ["samples_of"]

_LABELS = ("label", "labels", "target", "y")


def samples_of(source: Any, x: str | None = None, y: str | None = None) -> Samples:
    """Return the samples of a data set in another form; see `Samples.of`.

    Raises
    ------
    DataError
        It cannot be read so.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, list | tuple) and len(source) == 2:
        return _pair(*source)
    if isinstance(source, Mapping):
        return _pair(*_columns(source, x, y))
    if isinstance(source, DataLoader):
        # Batches are drawn by the run, so a loader's order and batch size do not matter: what it
        # shuffles is read unshuffled.
        plain = isinstance(source.sampler, RandomSampler | SequentialSampler)
        if not plain or source.collate_fn is not default_collate or source.drop_last:
            return _joined(source, x, y)
        source = source.dataset
    if isinstance(source, IterableDataset) or (
        hasattr(source, "column_names") and not hasattr(source, "__len__")
    ):
        return _stacked(source, x, y)
    if isinstance(source, Dataset) or hasattr(source, "column_names"):
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise _unknown(source)
        return _stacked((source[row] for row in range(len(source))), x, y)
    raise _unknown(source)


def _unknown(source: Any) -> DataError:
    return DataError(
        f"A {type(source).__name__} cannot be read as samples; give a pair (x, y) of arrays, a "
        "dict of them, a torch Dataset or DataLoader, or a Hugging Face data set."
    )


def _pair(x: Any, y: Any) -> Samples:
    return Samples(*(_tensor(name, value) for name, value in (("x", x), ("y", y))))


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.array(plain_array(name, value), order="C"))


def _columns(item: Mapping[str, Any], x: str | None, y: str | None) -> tuple[Any, Any]:
    """Return inputs and labels of a row, a batch or a table whose columns have names."""
    if y is None:
        y = next((name for name in _LABELS if name in item), None)
    if x is None and len(item) == 2:
        x = next((name for name in item if name != y), None)
    if x is None or y is None or x not in item or y not in item or x == y:
        raise DataError(
            f"Which columns hold inputs and labels is not clear from {', '.join(map(str, item))}; "
            "name them: Samples.of(data, x='image', y='label')."
        )
    return item[x], item[y]


def _parts(item: Any, x: str | None, y: str | None) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        return _columns(item, x, y)
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    what = f"{len(item)} values" if isinstance(item, list | tuple) else f"a {type(item).__name__}"
    raise DataError(f"An item of the data set is {what}; it must be inputs and a label.")


def _stacked(items: Iterable[Any], x: str | None, y: str | None) -> Samples:
    inputs, labels = [], []
    for row, item in enumerate(items):
        one, label = _parts(item, x, y)
        inputs.append(_tensor(f"x of row {row}", _image(one)))
        labels.append(_tensor(f"y of row {row}", label))
        for name, values in (("Inputs", inputs), ("Labels", labels)):
            if values[-1].shape != values[0].shape or values[-1].dtype != values[0].dtype:
                raise DataError(
                    f"{name} of a data set must have one shape and dtype; row {row} has "
                    f"{list(values[-1].shape)} {values[-1].dtype} and row 0 "
                    f"{list(values[0].shape)} {values[0].dtype}."
                )
    if not inputs:
        raise DataError("The data set holds no samples; at least 1 is needed.")
    return Samples(torch.stack(inputs), torch.stack(labels))


def _joined(batches: Iterable[Any], x: str | None, y: str | None) -> Samples:
    pairs = [_pair(*_parts(batch, x, y)) for batch in batches]
    if not pairs:
        raise DataError("The data set holds no samples; at least 1 is needed.")
    try:
        return Samples(torch.cat([p.x for p in pairs]), torch.cat([p.y for p in pairs]))
    except RuntimeError as error:
        raise DataError(f"The batches of the loader cannot be joined: {error}") from error


def _image(value: Any) -> Any:
    """Return an image of PIL as bytes [C, H, W], anything else as it is."""
    if not hasattr(value, "getbands"):
        return value
    pixels = np.array(value)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
