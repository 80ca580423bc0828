"""Reading Flower records without trusting them.

A record that arrives may be anything.  The reader checks names, types, declared and actual shapes
and sizes before numpy allocates a single byte from them, and gives views of the received buffer
instead of copies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import RecordDict

from sfl_flower.errors import WireError
from sfl_flower.wire.draft import ARRAYS, CONFIG, METRICS, PLAIN, PROTOCOL, RAW, Encodings
from sfl_flower.wire.encodings import Encoding, encoding_of
from sfl_flower.wire.labels import INTEGERS
from sfl_flower.wire.padding import (
    LABELS,
    LENGTHS,
    MAX_BYTES,
    PADDINGS,
    POSITIONS,
    lengths_dtype,
    restore,
)

__all__ = ["Reader"]

_STYPE = "numpy.ndarray"
_LONGEST_HEAD = 4096
_MOST_DIMENSIONS = 32
_NPY_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"(?P<text>\{'descr': '(?P<descr>[^'\n]{1,8})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n)",
    re.DOTALL,
)


class Reader:
    """One pass over the content of a message; every method raises `WireError` on bad input.

    Parameters
    ----------
    content : RecordDict
        What arrived.
    what : str
        Name of the message, for errors.
    encodings : Encodings
        How smashed data and cut gradients travel; a message that says so itself sets it.

    Attributes
    ----------
    content : RecordDict
        What arrived.
    booked : dict[str, int]
        Bytes by ledger category of what was read so far, control left out.
    standing : bool
        Whether what is being read are the terms of the request, the same in every round.
    terms : dict[str, Any]
        The terms read so far.
    """

    def __init__(self, content: RecordDict, what: str, encodings: Encodings = PLAIN) -> None:
        self.content = content
        self.what = what
        self.encodings = encodings
        self.booked: dict[str, int] = {}
        self.standing = False
        self.terms: dict[str, Any] = {}
        self._read: set[str] = {"protocol"}
        try:
            self._arrays = content.array_records[ARRAYS]
            self._config = content.config_records[CONFIG]
            self._metrics = content.metric_records[METRICS]
        except KeyError as missing:
            raise WireError(
                f"A {what} message lacks the record {missing}; it needs the records "
                "'arrays', 'config' and 'metrics'."
            ) from None

    def begin(self, what: str, spoken: bool) -> None:
        """Check the protocol, before anything is read.

        Parameters
        ----------
        what : str
            Name of the message, for errors.
        spoken : bool
            Whether the two sides have agreed before, so that the message need not say it.
        """
        self.what = what
        version = self._config.get("protocol", PROTOCOL if spoken else None)
        if version != PROTOCOL:
            raise WireError(
                f"A {what} message has protocol version {version!r}, this side speaks {PROTOCOL}; "
                "install the same sfl-flower on the server and on the clients."
            )
        if "protocol" in self._config:
            self.terms["protocol"] = version

    def fail(self, problem: str) -> WireError:
        """Return the error for a problem of this message."""
        return WireError(f"A {self.what} message {problem}.")

    def has(self, name: str) -> bool:
        """Tell whether an array, a setting or a metric of this name came along."""
        return name in self._arrays or name in self._config or name in self._metrics

    def array(
        self,
        name: str,
        dtype: str,
        *,
        ndim: int | None = None,
        shape: tuple[int, ...] | None = None,
        max_bytes: int = MAX_BYTES,
        category: str = "",
    ) -> np.ndarray:
        """Read one array as a read-only view of the received bytes.

        Parameters
        ----------
        name, dtype : str
            The array's name and the dtype it must have.
        ndim : int, optional
            The number of dimensions it must have.
        shape : tuple of int, optional
            The shape it must have.
        max_bytes : int
            The most bytes that are accepted.
        category : str
            What its bytes are booked as, empty for control.
        """
        self._read.add(name)
        if name not in self._arrays:
            raise self.fail(f"lacks the array '{name}'")
        array = self._arrays[name]
        if array.stype not in (RAW, _STYPE) or array.dtype != dtype:
            raise self.fail(
                f"has '{name}' as {array.dtype} ({array.stype}), expected {dtype} ({RAW})"
            )
        declared = tuple(array.shape)
        if (ndim is not None and len(declared) != ndim) or (shape not in (None, declared)):
            wanted = shape if shape is not None else f"{ndim} dimensions"
            raise self.fail(f"has '{name}' of shape {declared}, expected {wanted}")
        if len(array.data) > max_bytes + 4096:
            raise self.fail(
                f"has '{name}' of {len(array.data)} bytes, at most {max_bytes} are read"
            )
        view = _view(array.data, declared, dtype, array.stype == RAW)
        if view is None:
            raise self.fail(f"has '{name}' whose bytes do not match {dtype} of shape {declared}")
        if view.dtype.kind == "f" and not np.isfinite(view).all():
            raise self.fail(f"has a value in '{name}' that is not finite")
        self.book(category, view.nbytes)
        return view

    def book(self, category: str, count: int) -> None:
        """Add bytes to a category; those of none are control."""
        if category and count:
            self.booked[category] = self.booked.get(category, 0) + count

    def samples(self, name: str, category: str) -> np.ndarray:
        """Read an array of samples, of any shape, whose padding may have been left out.

        A view of the received bytes if nothing was left out nor encoded, else a new array.

        Parameters
        ----------
        name : str
            The array's name.
        category : {"smashed", "gradients", "labels"}
            What it is; the first two come in the run's encoding and are float32 afterwards, labels
            come as integers of any size and are int64.
        """
        encoding = self.encodings._asdict().get(category, "")
        dtype = "float32" if encoding else self._integers(name)
        ndim, positions = None, 0
        if short := self.has(name + LENGTHS):
            positions = self.integer(name + POSITIONS, low=1, high=MAX_BYTES)
            if (padding := PADDINGS.get(dtype)) is None:
                raise self.fail(f"has '{name}' as {dtype}, in which nothing can be left out")
            ndim = padding.ndim - 1
        if encoding:
            rows = self._encoded(name, category, encoding_of(encoding))
            if ndim not in (None, rows.ndim):
                raise self.fail(f"has '{name}' of shape {rows.shape}, expected {ndim} dimensions")
        else:
            most = LABELS * np.dtype(dtype).itemsize
            rows = self.array(name, dtype, ndim=ndim, category=category, max_bytes=most)
        if not short:
            return rows if encoding else _whole_numbers(rows)
        kind = str(lengths_dtype(positions))
        lengths = self.array(name + LENGTHS, kind, ndim=1, category=category)
        whole = restore(rows, lengths, positions, PADDINGS[dtype])
        if isinstance(whole, str):
            raise self.fail(f"has '{name}' {whole}")
        return whole if encoding else _whole_numbers(whole)

    def _integers(self, name: str) -> str:
        """Return the dtype in which labels came along."""
        found = self._arrays[name].dtype if name in self._arrays else INTEGERS[0]
        if found not in INTEGERS:
            raise self.fail(f"has '{name}' as {found}, expected one of {', '.join(INTEGERS)}")
        return found

    def _encoded(self, name: str, category: str, way: Encoding) -> np.ndarray:
        """Read the parts of an encoded array; return its values, which are finite."""
        parts = {
            suffix: self.array(name + suffix, dtype, category=category)
            for suffix, dtype in way.parts.items()
        }
        try:
            rows = way.decode(parts)
        except WireError as error:
            raise self.fail(
                f"has '{name}' in the encoding {way.name}: {str(error).rstrip('.')}"
            ) from error
        if not np.isfinite(rows).all():
            raise self.fail(f"has a value in '{name}' that is not finite")
        return rows

    def group(
        self,
        prefix: str,
        dtypes: Iterable[str],
        category: Callable[[str], str] = lambda name: "",
    ) -> dict[str, np.ndarray]:
        """Read every flat array whose name starts with `prefix`, keyed by what follows it."""
        allowed = tuple(dtypes)
        found: dict[str, np.ndarray] = {}
        for name in sorted(key for key in self._arrays if key.startswith(prefix)):
            dtype = self._arrays[name].dtype
            if dtype not in allowed:
                raise self.fail(f"has '{name}' as {dtype}, expected one of {', '.join(allowed)}")
            key = name.removeprefix(prefix)
            found[key] = self.array(name, dtype, ndim=1, category=category(key))
        return found

    def integer(self, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """Read a whole number within [low, high] from the config."""
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(f"has {name}={value!r}, expected a whole number in [{low}, {high}]")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """Read a finite number within [low, high] from the config."""
        value = self._value(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or not low <= value <= high
        ):
            raise self.fail(f"has {name}={value!r}, expected a number in [{low:g}, {high:g}]")
        return float(value)

    def text(self, name: str, choices: Iterable[str] | None = None, longest: int = 4096) -> str:
        """Read a text from the config, one of `choices` if given."""
        value = self._value(name)
        if not isinstance(value, str) or len(value) > longest:
            raise self.fail(f"has {name}={str(value)[:80]!r}, expected a text")
        if choices is not None and value not in choices:
            raise self.fail(f"has {name}={value[:80]!r}, expected one of {', '.join(choices)}")
        return value

    def hexadecimal(self, name: str, longest: int = 64) -> str:
        """Read a few bytes from the config; give their hexadecimal digits."""
        value = self._value(name)
        if not isinstance(value, bytes) or len(value) > longest:
            raise self.fail(f"has {name}={str(value)[:80]!r}, expected at most {longest} bytes")
        return value.hex()

    def boolean(self, name: str) -> bool:
        """Read a truth value from the config."""
        value = self._value(name)
        if not isinstance(value, bool):
            raise self.fail(f"has {name}={value!r}, expected true or false")
        return value

    def metric(self, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """Read a whole number within [low, high] from the metrics."""
        value = self._metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(f"has {name}={value!r}, expected a whole number in [{low}, {high}]")
        return value

    def _value(self, name: str) -> Any:
        self._read.add(name)
        if name not in self._config:
            raise self.fail(f"lacks the setting '{name}'")
        if self.standing:
            self.terms[name] = self._config[name]
        return self._config[name]

    def done(self) -> None:
        """Refuse arrays and settings that nobody asked for."""
        extra = (set(self._arrays) | set(self._config)) - self._read
        if extra:
            raise self.fail(f"carries unknown entries: {', '.join(sorted(extra)[:5])}")


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    """Return labels of any integer dtype as int64, read-only as all that is read."""
    found = labels.astype(np.int64)
    found.flags.writeable = False
    return found


def _view(data: bytes, shape: tuple[int, ...], dtype: str, raw: bool) -> np.ndarray | None:
    """Return the array inside received bytes without a copy, None where they disagree."""
    stored = np.dtype(dtype).newbyteorder("<")
    if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
        return None
    if math.prod(max(size, 1) for size in shape) * stored.itemsize > MAX_BYTES:
        return None
    start, count = 0 if raw else _npy_start(data, shape, stored), math.prod(shape)
    if start is None or len(data) - start != count * stored.itemsize:
        return None
    if count == 0:  # frombuffer refuses an empty buffer
        return np.empty(shape, dtype=dtype)
    return np.frombuffer(data, dtype=stored, count=count, offset=start).reshape(shape)


def _npy_start(data: bytes, shape: tuple[int, ...], stored: np.dtype[Any]) -> int | None:
    """Return where the values begin in what `np.save` wrote, None where its header differs."""
    # numpy evaluates the header as Python; what arrives is compared with what numpy writes.
    head = _NPY_HEAD.match(bytes(data[:_LONGEST_HEAD]))
    declared = f"{shape[0]}," if len(shape) == 1 else ", ".join(map(str, shape))
    if (
        head is None
        or int.from_bytes(head["length"], "little") != len(head["text"])
        or head["descr"] != stored.str.encode()  # as bytes: what arrived need not be UTF-8
        or head["shape"] != declared.encode()
    ):
        return None
    return head.end()
