"""What arrived of each client's samples, for smashed data that travel as what changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.options import Range
from sfl_flower.server.roster import Member
from sfl_flower.task import SplitTask
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.recall import NEVER, memory_check, memory_digest, rows_of_round

__all__ = ["Recall", "TemporalSettings"]

MOST_SAMPLES = 1_000_000
"""The most that a client may say it holds, for what it sent to be remembered."""


@dataclass(frozen=True)
class TemporalSettings(Settings):
    """How smashed data of a sample travel when they were sent before.

    Attributes
    ----------
    temporal : float
        With more than 0, smashed data travel as differences from what was last sent of the same
        sample, and not at all where they changed by less than this share of their norm. Client and
        server remember 4 bytes for each number of each sample (`docs/ledger.md`).
    """

    temporal: Annotated[float, Range(0, 1)] = 0.0

    @property
    def control(self) -> dict[str, Any]:
        """Options of the frozen client that has the pace, batches and mode of this method."""
        own = {"temporal": self.temporal} if self.temporal else {}
        return {**super().control, **own}


class Recall:
    """Smashed data of all clients' samples as they last arrived.

    Parameters
    ----------
    task : SplitTask
        Must give the same inputs for the same sample.
    config : RunConfig
        Gives clients their keys, and the size of mini-batches.
    share : float
        What `TemporalSettings.temporal` says.

    Raises
    ------
    ConfigError
        If the task augments its samples.
    """

    def __init__(self, task: SplitTask, config: RunConfig, share: float) -> None:
        if task.augment is not None:
            raise ConfigError(
                f"temporal sends what changed of a sample, and task '{task.name}' augments its "
                "samples, so that all of it changes each time; set temporal=0, or give the task no "
                "augment."
            )
        self.share = share
        self._config = config
        self._kept: dict[int, dict[int, np.ndarray]] = {}

    def known(self, member: Member, round: int, minibatches: int) -> bytes | None:
        """Return what a request says of the samples that it asks for; see `memory_digest`.

        None for a client that says it holds more than a million samples: which of them a
        mini-batch has would cost the server more than it saves.
        """
        if member.samples > MOST_SAMPLES:
            return None
        kept = self._kept.get(member.partition, {})
        rows = self._rows(member, round, minibatches).tolist()
        return memory_digest(memory_check(kept[row]) if row in kept else NEVER for row in rows)

    def whole(self, member: Member, reply: ForwardReply) -> ForwardReply:
        """Return a reply with the smashed data of all its samples, and remember them.

        Raises
        ------
        WireError
            If it leaves out samples of which nothing is remembered, or the sum is not finite.
        """
        if member.samples > MOST_SAMPLES:
            if reply.changed is not None:
                raise WireError("it leaves out samples, which nobody asked for.")
            return reply
        rows = self._rows(member, reply.round, len(reply.sizes)).tolist()
        if len(rows) != len(reply.y):
            raise WireError(f"it has {len(reply.y)} samples, asked were {len(rows)}.")
        kept = self._kept.setdefault(member.partition, {})
        whole = np.zeros((len(rows), *reply.z.shape[1:]), np.float32)
        changed = reply.changed_rows()
        for at, row in enumerate(rows):
            if not changed[at] and row not in kept:
                raise WireError("it leaves out samples whose smashed data never arrived.")
            if reply.changed is not None and row in kept:
                whole[at] = kept[row]
        with np.errstate(over="ignore"):
            whole[changed] += reply.z
        if not np.isfinite(whole).all():
            raise WireError("its smashed data, with what was sent before, are not finite.")
        kept |= {row: whole[at].copy() for at, row in enumerate(rows) if changed[at]}
        return replace(reply, z=whole, changed=None)

    def forget_others(self, here: Iterable[Member]) -> None:
        """Forget what clients sent that are gone; they would send all anew."""
        self._kept = {
            m.partition: self._kept[m.partition] for m in here if m.partition in self._kept
        }

    def _rows(self, member: Member, round: int, minibatches: int) -> npt.NDArray[np.int64]:
        key = self._config.client_key(member.partition)
        return rows_of_round(key, round, minibatches, member.samples, self._config.batch_size)
