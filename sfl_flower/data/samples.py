"""Samples that one process holds, and the checks they pass before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl_flower.errors import DataError

__all__ = ["Samples", "check_samples"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels, held by one process.

    Parameters
    ----------
    x : Tensor, shape [N, ...]
        Inputs, as stored: a task's transform is applied to each batch, not here.
    y : Tensor of int64, shape [N]
        Labels; or [N, T], one a position, for a task with a label that is ignored.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of(cls, source: Any, x: str | None = None, y: str | None = None) -> Samples:
        """Return the samples of a data set in another form, all of them, in its order.

        Parameters
        ----------
        source : object
            A pair (x, y) of arrays or tensors; a dict of them; a torch ``Dataset`` or
            ``DataLoader``; a Hugging Face data set, such as a partition of Flower's
            ``FederatedDataset``. Images of PIL become bytes [C, H, W].
        x, y : str, optional
            Which columns hold inputs and labels, where they have names; found by themselves where
            there are two and one is called label, labels, target or y.

        Raises
        ------
        DataError
            It cannot be read so, or its inputs have several shapes.
        """
        from sfl_flower.data.sources import samples_of

        return samples_of(source, x, y)

    def take(self, rows: npt.ArrayLike | slice) -> Samples:
        """Return the samples at these rows (ints from 0 on, of shape [n], or a slice)."""
        if isinstance(rows, slice):
            return Samples(self.x[rows], self.y[rows])
        index = torch.from_numpy(np.array(rows, dtype=np.int64))
        return Samples(self.x.index_select(0, index), self.y.index_select(0, index))


def check_samples(samples: Samples, classes: int, where: str, ignore: int | None = None) -> Samples:
    """Return the samples in the form training needs, or say why they cannot be used.

    Parameters
    ----------
    samples : Samples
        As loaded. Labels of any integer dtype become int64, float64 inputs become float32.
    classes : int
        Labels must lie in 0 <= y < classes.
    where : str
        What to call the set in an error, ``"the training set of task 'digits'"``.
    ignore : int, optional
        A label that is no class; with it, y may be [N, T], and each row needs another label.

    Raises
    ------
    DataError
        No `Samples` of dense tensors on the CPU, no samples, lengths that differ, labels that are
        not integers, not of shape [N] or outside the classes, a row without a label, inputs that
        are not finite.
    """
    if not isinstance(samples, Samples):
        raise DataError(
            f"{where[:1].upper()}{where[1:]} is a {type(samples).__name__}; its function must "
            "return Samples. Samples.of(...) makes them of a pair (x, y), a torch Dataset or "
            "DataLoader, or a Hugging Face data set."
        )
    x: Any = samples.x
    y: Any = samples.y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise DataError(
            f"In {where}, x is a {type(x).__name__} and y a {type(y).__name__}; both must be torch "
            "tensors (torch.from_numpy makes one of a NumPy array, Samples.of((x, y)) both)."
        )
    for name, value in (("x", x), ("y", y)):
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise DataError(
                f"In {where}, {name} is on {value.device} in layout {value.layout}; it must be a "
                "dense tensor on the CPU (.to_dense().cpu())."
            )
    x, y = x.detach(), y.detach()
    if y.ndim != 1 and (ignore is None or y.ndim < 1):
        raise DataError(f"In {where}, y has shape {list(y.shape)}; it must be one label a sample.")
    if x.ndim < 1 or len(x) != len(y):
        raise DataError(
            f"In {where}, x has shape {list(x.shape)} but there are {len(y)} labels; there must be "
            "one label for each row of x."
        )
    if len(y) == 0:
        raise DataError(f"There are no samples in {where}; at least 1 is needed.")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(
            f"In {where}, y has dtype {y.dtype}; labels must be integers (y.long() makes them)."
        )
    y = y.to(torch.int64)
    counted = torch.ones_like(y, dtype=torch.bool) if ignore is None else y != ignore
    empty = ~counted.reshape(len(y), -1).any(dim=1)
    if empty.any():
        raise DataError(
            f"In {where}, {int(empty.sum())} of {len(y)} samples have no label but {ignore}, which "
            f"does not count; the first is row {int(empty.nonzero()[0])}. Label or remove them."
        )
    wrong = counted & ((y < 0) | (y >= classes))
    if wrong.any():
        raise DataError(
            f"In {where}, {int(wrong.sum())} of {y.numel()} labels are outside the task's "
            f"{classes} classes (0 to {classes - 1}); the first is {int(y[wrong][0])} at row "
            f"{int(wrong.nonzero()[0, 0])}. Correct the labels or the task's `classes`."
        )
    if x.is_floating_point():
        finite = torch.isfinite(x.reshape(len(x), -1)).all(dim=1)
        if not finite.all():
            raise DataError(
                f"In {where}, {int((~finite).sum())} of {len(x)} inputs hold a NaN or an infinity; "
                f"the first is row {int((~finite).nonzero()[0])}. Remove or repair them."
            )
    return Samples(x.to(torch.float32) if x.dtype == torch.float64 else x, y)
