"""What a checkpoint says beside its tensors, read with care: a file may be anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sfl_flower.errors import SflError, TrainingError
from sfl_flower.wire import Ledger

__all__ = ["Progress", "fitting"]


@dataclass(frozen=True)
class Progress:
    """How far a run had come.

    Attributes
    ----------
    round : int
        The last whole round.
    seconds : float
        Wall-clock seconds up to then.
    replies : int
        Replies that were used up to then.
    joins : int
        Nodes that had said who they are.
    ledger : Ledger
        What it had cost.
    untrained : float or None
        Loss on the test set before the first round, where it is known and finite.
    """

    round: int
    seconds: float
    replies: int
    joins: int
    ledger: Ledger
    untrained: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        known = self.untrained is not None and math.isfinite(self.untrained)
        untrained = self.untrained if known else None
        return {**vars(self), "ledger": self.ledger.to_dict(), "untrained": untrained}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Progress:
        """Read what `to_dict` gave.

        Raises
        ------
        TrainingError
            If a value is missing, or is none that a run can have.
        """
        with fitting("its counters"):
            seconds, ledger = float(values["seconds"]), Ledger.from_dict(values["ledger"])
            for name in ("round", "replies", "joins"):
                value = values[name]
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 0")
            told = values.get("untrained")
            untrained = None if told is None else float(told)
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"seconds is {seconds}; it must be finite, at least 0")
            counts = (*ledger.up.values(), *ledger.down.values(), ledger.exchanges, ledger.samples)
            if min(counts) < 0:
                raise ValueError("the ledger has a count below 0")
        rest = (values["replies"], values["joins"], ledger)
        return cls(values["round"], seconds, *rest, untrained)


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Turn whatever reading a part of a checkpoint raises into one sentence.

    Parameters
    ----------
    what : str
        The part.

    Raises
    ------
    TrainingError
        Instead of any other error than an `SflError`.
    """
    try:
        yield
    except SflError:
        raise
    except Exception as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        problem = f"The checkpoint cannot be used, {what}: {reason}; go on from the one before it,"
        raise TrainingError(
            f"{problem} resume='previous', or start anew in another directory.",
            shell=f"{problem} --resume previous, or start anew in another directory.",
        ) from error
