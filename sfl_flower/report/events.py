"""TensorBoard events of a run; the step is the round."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from sfl_flower.report.history import RoundRecord

__all__ = ["EventWriter", "scalars"]

_log = logging.getLogger(__name__)


class EventWriter:
    """Writes the numbers of each record; opens its file at the first one.

    Parameters
    ----------
    path : Path
        Directory of the event files, made when needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._missing = False

    def write(self, record: RoundRecord) -> None:
        """Write a record's finite numbers; does nothing when tensorboard is not installed."""
        if self._writer is None:
            self._open(record.round)
        if self._writer is not None:
            for name, value in scalars(record).items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, global_step=record.round)

    def close(self) -> None:
        """Flush and close the file; a later record opens another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, first: int) -> None:
        if self._missing:
            return
        try:
            from torch.utils import tensorboard
        except ImportError:
            self._missing = True
            _log.info("tensorboard is not installed: no events are written")
            return
        module: Any = tensorboard
        # Purges what an earlier attempt wrote from this round on.
        self._writer = module.SummaryWriter(str(self._path), purge_step=first)


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return the numbers of a record by the names that they have in TensorBoard."""
    out = {
        "bytes/up": float(record.bytes_up),
        "bytes/down": float(record.bytes_down),
        "progress/samples": float(record.samples),
        "progress/exchanges": float(record.exchanges),
        "progress/seconds": record.seconds,
        "clients/replies": float(record.replies),
        "clients/failures": float(record.failures),
        "clients/rejected": float(record.rejected),
    }
    if record.loss is not None:
        out["train/loss"] = record.loss
    out.update({f"eval/{name}": value for name, value in record.metrics.items()})
    out.update({f"extra/{name}": value for name, value in record.extra.items()})
    return out
