"""The history of a run: one record a round, one line of JSON a record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

from sfl_flower.errors import DataError

__all__ = ["History", "RoundRecord"]

AXES = ("samples", "exchanges", "seconds", "round", "bytes", "bytes_up", "bytes_down")

_INTEGERS = (
    "round",
    "samples",
    "exchanges",
    "bytes_up",
    "bytes_down",
    "replies",
    "failures",
    "rejected",
    "version",
    "client_peak_bytes",
)


@dataclass(frozen=True)
class RoundRecord:
    """What happened up to the end of one round.

    Attributes
    ----------
    round : int
        Number of the round, from 1; 0 is the model before training.
    samples : int
        Training samples that contributed so far, over all clients (cumulative).
    exchanges : int
        Request and reply pairs so far, summed over clients (cumulative).
    seconds : float
        Wall-clock seconds since the run started (cumulative; a resumed run goes on counting).
    loss : float or None
        Mean training loss the server saw in this round; None when it saw none.
    metrics : mapping of str to float
        Result of the evaluation after this round; empty when there was none.
    bytes_up, bytes_down : int
        Bytes from clients to server and back so far, all categories (cumulative).
    replies, failures, rejected : int
        Of this round: replies used; errors and missing replies; replies refused by validation.
    notes : tuple of str
        What a person should know about this round.
    version : int
        Version of the client half after this round.
    digest : str
        Hexadecimal digest of the journal's head; empty when the method keeps no journal.
    extra : mapping of str to float
        Further numbers of the method.
    clients : mapping of str to tuple of int
        Clients by what was found of their answers in this round, such as "refused"; see `conduct`.
    client_peak_bytes : int
        Largest peak of memory that a client has reported so far, 0 where none has; it does not
        count when records are compared.
    """

    round: int
    samples: int
    exchanges: int
    seconds: float
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    replies: int = 0
    failures: int = 0
    rejected: int = 0
    notes: tuple[str, ...] = ()
    version: int = 0
    digest: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    client_peak_bytes: int = field(default=0, compare=False)

    def to_json(self) -> str:
        """Return the record as one line of JSON without a line end.

        Floats keep every bit; a number that is not finite is written as ``null``.
        """
        return json.dumps(_finite(vars(self)), ensure_ascii=False, allow_nan=False)

    def frozen(self) -> RoundRecord:
        """Return a copy of which nothing can be changed, its mappings included."""
        return replace(
            self,
            metrics=MappingProxyType(dict(self.metrics)),
            extra=MappingProxyType(dict(self.extra)),
            clients=MappingProxyType(dict(self.clients)),
        )

    @classmethod
    def from_json(cls, line: str) -> RoundRecord:
        """Read a record back; a ``null`` in ``metrics`` or ``extra`` becomes NaN.

        Raises
        ------
        DataError
            If the line is not a JSON object with the fields of a record.
        """
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"a history line is not JSON: {error}") from error
        known = {f.name for f in fields(cls)}
        required = {"round", "samples", "exchanges", "seconds"}
        if not isinstance(raw, dict) or not required <= raw.keys() <= known:
            raise DataError(
                "a history line is not a round record: it needs "
                f"{sorted(required)} and allows only {sorted(known)}"
            )
        try:
            return cls(**_typed(raw))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"a history line holds a value of the wrong type: {error}") from error


class History(Sequence[RoundRecord]):
    """The records of a run, in the order of the rounds; reads like a list.

    Parameters
    ----------
    records : iterable of RoundRecord, optional
        The first records.
    """

    def __init__(self, records: Iterable[RoundRecord] = ()) -> None:
        self._records: list[RoundRecord] = list(records)

    @classmethod
    def load(cls, path: Path | str) -> History:
        """Read a ``history.jsonl``.

        A last line that was torn by a crash is dropped.

        Raises
        ------
        DataError
            If there is no such file, or a line before the last cannot be read.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"cannot read the history {path}: {error.strerror}") from error
        # Not splitlines: a note may hold a line separator that JSON does not escape.
        lines = text.removesuffix("\n").split("\n") if text else []
        history = cls()
        for number, line in enumerate(lines, start=1):
            try:
                history.append(RoundRecord.from_json(line))
            except DataError as error:
                if number == len(lines) and not text.endswith("\n"):
                    break
                raise DataError(f"{path}, line {number}: {error}") from error
        return history

    def append(self, record: RoundRecord) -> None:
        """Add the record of the next round."""
        self._records.append(record)

    def series(
        self, x: str = "samples", metric: str = "accuracy"
    ) -> tuple[list[float], list[float]]:
        """Return the points of a curve: rounds that have a finite value of `metric`.

        Parameters
        ----------
        x : str
            ``samples``, ``exchanges``, ``seconds``, ``round``, ``bytes`` (up and down),
            ``bytes_up`` or ``bytes_down``.
        metric : str
            ``loss`` (training), or a name in the records' ``metrics``.

        Returns
        -------
        xs, ys : list of float
            Of equal length; empty when no record has the metric.

        Raises
        ------
        DataError
            If `x` is none of the names above.
        """
        if x not in AXES:
            raise DataError(f"unknown axis {x!r}; choose one of {', '.join(AXES)}")
        xs: list[float] = []
        ys: list[float] = []
        for record in self._records:
            y = record.loss if metric == "loss" else record.metrics.get(metric)
            if y is not None and math.isfinite(y):
                both = record.bytes_up + record.bytes_down
                xs.append(float(both if x == "bytes" else getattr(record, x)))
                ys.append(float(y))
        return xs, ys

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> RoundRecord | History:
        if isinstance(index, slice):
            return History(self._records[index])
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RoundRecord]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"History({len(self)} rounds)"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _typed(raw: dict[str, Any]) -> dict[str, Any]:
    """Bring JSON values to the fields' types, refusing what would lose information."""
    out = dict(raw)
    for name in _INTEGERS:
        if name in out and (isinstance(out[name], bool) or not isinstance(out[name], int)):
            raise TypeError(f"{name} is {out[name]!r}, not a whole number")
    out["seconds"] = float(out["seconds"])
    if out.get("loss") is not None:
        out["loss"] = float(out["loss"])
    for name in ("metrics", "extra"):
        values = out.get(name, {})
        out[name] = {k: math.nan if v is None else float(v) for k, v in values.items()}
    out["notes"] = tuple(str(note) for note in out.get("notes", ()))
    clients = out.get("clients", {})
    out["clients"] = {str(what): tuple(map(int, found)) for what, found in clients.items()}
    return out
