"""Damage that follows from a few bytes alone, so that any engine can drive it and repeat it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

__all__ = ["Draw", "damaged_bytes", "damaged_content", "damaged_json", "damaged_tensors"]

T = TypeVar("T")

NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 10**12)
VALUES: Sequence[Any] = (
    None, True, False, *NUMBERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "none", "tail",
    "full", "int8+deflate", "../x", "\x1b[2J\udc80", "9" * 5000, b"", b"\x00" * 32, b"\xff" * 5000,
    [], [0, 1], {}, {"a": 1},
)  # fmt: skip
DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool", "object", "nonsense", "")
TORCH_DTYPES = (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)


class Draw:
    """Choices made by bytes, one after another; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        """Return a whole number in [0, count), by as many bytes as it needs; `count` is above 0."""
        size = max(1, (count - 1).bit_length() + 7 >> 3)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") % count

    def one(self, of: Sequence[T]) -> T:
        """Return one of a sequence that is not empty."""
        return of[self.below(len(of))]

    def rest(self, count: int) -> bytes:
        """Return the next bytes."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")


def damaged_bytes(data: bytes, draw: Draw) -> bytes:
    """Return bytes of which up to four things have changed."""
    found = bytearray(data)
    for _ in range(1 + draw.below(4)):
        at = draw.below(len(found) + 1)
        kind = draw.below(8)
        if kind == 0:
            found[at:] = b""
        elif kind == 1:
            found[at:at] = draw.rest(1 + draw.below(8))
        elif kind == 2:
            del found[at : at + 1 + draw.below(64)]
        elif kind == 3:
            count = draw.below(256)
            found[at:at] = found[at : at + count]
        elif kind == 4:
            number = draw.one(NUMBERS) % 2**64
            width, order = draw.one((1, 2, 4, 8)), draw.one("<>")
            packed = struct.pack(f"{order}Q", number)
            found[at : at + width] = packed[:width] if order == "<" else packed[-width:]
        elif kind == 5:
            found[at : at + 1] = draw.rest(1)
        elif at < len(found):
            found[at] ^= 1 << draw.below(8)
    return bytes(found)


def damaged_content(content: RecordDict, draw: Draw) -> RecordDict:
    """Return the content of a message of which up to three entries have changed."""
    arrays = dict(content.array_records["arrays"])
    config: dict[str, Any] = dict(content.config_records["config"])
    metrics: dict[str, Any] = dict(content.metric_records["metrics"])
    for _ in range(1 + draw.below(3)):
        kind = draw.below(8)
        if kind < 4 and arrays:
            _change(arrays, draw, _array)
        elif kind == 7 and metrics:
            _change(metrics, draw, lambda value, draw: draw.one((*NUMBERS, 0.5, [1, 2])))
        elif config:
            _change(config, draw, _setting)
    records = {"arrays": arrays, "config": config, "metrics": metrics}
    if draw.below(64) == 63:
        del records[draw.one(tuple(records))]
    kinds = {"arrays": ArrayRecord, "config": ConfigRecord, "metrics": MetricRecord}
    # What Flower itself refuses to hold cannot arrive.
    return RecordDict({name: _record(kinds[name], value) for name, value in records.items()})


def _record(kind: Callable[[Any], Any], values: Mapping[str, Any]) -> Any:
    kept = dict(values)
    while True:
        try:
            return kind(kept)
        except (TypeError, ValueError):
            kept.popitem()


def _change(entries: dict[str, Any], draw: Draw, change: Callable[[Any, Draw], Any]) -> None:
    name, kind = draw.one(sorted(entries)), draw.below(8)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        entries[draw.one(("other", name + ".lengths", name[:-1] or "x"))] = entries[name]
    elif kind == 2:
        entries[draw.one(sorted(entries))] = entries[name]
    else:
        entries[name] = change(entries[name], draw)


def _array(array: Array, draw: Draw) -> Array:
    dtype, shape, stype, data = array.dtype, tuple(array.shape), array.stype, array.data
    kind = draw.below(8)
    if kind == 0:
        dtype = draw.one(DTYPES)
    elif kind == 1:
        sizes = list(shape) or [0]
        sizes[draw.below(len(sizes))] = draw.one(NUMBERS)
        shape = tuple(sizes)
    elif kind == 2:
        shape = draw.one(((), (0,), (len(data),), (*shape, 1), shape[1:], (1,) * 40))
    elif kind == 3:
        stype = draw.one(("numpy.ndarray", "torch", "", "raw"))
    elif kind == 4 and shape and shape[0] > 1:  # whole rows less: what is left fits
        data = data[: len(data) // shape[0] * (shape[0] - 1)]
        shape = (shape[0] - 1, *shape[1:])
    else:
        data = damaged_bytes(data, draw)
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def _setting(value: Any, draw: Draw) -> Any:
    if isinstance(value, bytes) and draw.below(2):
        return damaged_bytes(value, draw)
    if isinstance(value, str) and draw.below(2):
        return damaged_bytes(value.encode(errors="replace"), draw).decode(errors="replace")
    if type(value) is int and draw.below(2):
        return value + draw.one((1, -1, 2**32))
    return draw.one(VALUES)


def damaged_json(value: Any, draw: Draw, deep: int = 0) -> Any:
    """Return plain values of which one, or one inside, has changed."""
    if isinstance(value, dict) and value and draw.below(8) and deep < 8:
        name = draw.one(sorted(value))
        kind = draw.below(8)
        rest = {key: item for key, item in value.items() if key != name}
        if kind == 0:
            return rest
        if kind == 1:
            return {**value, draw.one(("other", name.upper(), "")): value[name]}
        return {**value, name: damaged_json(value[name], draw, deep + 1)}
    if isinstance(value, list) and value and draw.below(8) and deep < 8:
        at = draw.below(len(value))
        return [*value[:at], damaged_json(value[at], draw, deep + 1), *value[at + 1 :]]
    found = _setting(value, draw)
    return found.hex() if isinstance(found, bytes) else found


def damaged_tensors(tensors: Mapping[str, Tensor], draw: Draw) -> dict[str, Tensor]:
    """Return named tensors of which up to two have changed."""
    found = dict(tensors)
    for _ in range(1 + draw.below(2)):
        _change(found, draw, _tensor)
    return found


def _tensor(tensor: Tensor, draw: Draw) -> Tensor:
    kind = draw.below(6)
    flat = tensor.contiguous().reshape(-1)
    if kind == 0:
        return tensor.to(draw.one(TORCH_DTYPES))
    if kind == 1:
        return flat[:-1] if len(flat) else torch.zeros(1)
    if kind == 2:
        return tensor[None] if tensor.ndim < 8 else flat
    if kind == 3 and tensor.is_floating_point() and len(flat):
        flat = flat.clone()
        flat[draw.below(len(flat))] = draw.one((float("nan"), float("inf"), 1e30))
        return flat.reshape(tensor.shape)
    raw = flat.view(torch.uint8).numpy().tobytes()
    data = bytearray(damaged_bytes(raw, draw)[: len(raw)].ljust(len(raw), b"\0"))
    if not data:
        return torch.zeros(2)
    bits = np.frombuffer(data, np.uint8)
    if tensor.dtype is torch.bool:
        bits = (bits & 1).astype(np.uint8)
    return torch.from_numpy(bits.copy()).view(tensor.dtype).reshape(tensor.shape)
