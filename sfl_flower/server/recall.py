"""What arrived of each client's samples, for smashed data that travel as what changed."""

from __future__ import annotations

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
from sfl_flower.wire.recall import NEVER, memory_digest, rows_of_round

__all__ = ["Recall", "TemporalSettings"]


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
        self._kept: dict[int, tuple[npt.NDArray[np.int64], np.ndarray]] = {}

    def known(self, member: Member, round: int, minibatches: int) -> bytes:
        """Return what a request says of the samples that it asks for; see `memory_digest`."""
        rows = self._rows(member, round, minibatches)
        kept = self._kept.get(member.partition)
        return memory_digest(np.full(len(rows), NEVER) if kept is None else kept[0][rows])

    def whole(self, member: Member, reply: ForwardReply) -> ForwardReply:
        """Return a reply with the smashed data of all its samples, and remember them.

        Raises
        ------
        WireError
            If it leaves out samples of which nothing is remembered.
        """
        rows = self._rows(member, reply.round, len(reply.sizes))
        if len(rows) != len(reply.y):
            raise WireError(f"it has {len(reply.y)} samples, asked were {len(rows)}.")
        shape = reply.z.shape[1:]
        if member.partition not in self._kept:
            kept = np.full(member.samples, NEVER), np.zeros((member.samples, *shape), np.float32)
            self._kept[member.partition] = kept
        rounds, old = self._kept[member.partition]
        whole = old[rows] if reply.changed is not None else np.zeros((len(rows), *shape), "f4")
        changed = reply.changed_rows()
        if (rounds[rows[~changed]] == NEVER).any():
            raise WireError("it leaves out samples whose smashed data never arrived.")
        whole[changed] += reply.z
        old[rows[changed]] = whole[changed]
        rounds[rows[changed]] = reply.round
        return replace(reply, z=whole, changed=None)

    def _rows(self, member: Member, round: int, minibatches: int) -> npt.NDArray[np.int64]:
        key = self._config.client_key(member.partition)
        return rows_of_round(key, round, minibatches, member.samples, self._config.batch_size)
