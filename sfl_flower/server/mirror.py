"""The server's copy of what clients replay, the journal that made it, and who stands where."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import JournalError
from sfl_flower.server.roster import Member
from sfl_flower.server.tensors import under
from sfl_flower.split import buffers_of, carried_state, travelling_state
from sfl_flower.wire import StaleReply, Sync, pack_state, state_bytes
from sfl_flower.zo import (
    Entry,
    Journal,
    JournalHeader,
    OptimizerSpec,
    ParameterVector,
    Replica,
    manifest_digest,
    trained_names,
)
from sfl_flower.zo.channels import Channels
from sfl_flower.zo.header import params_digest

__all__ = ["SYNC_POLICIES", "Mirror"]

SYNC_POLICIES = ("auto", "replay", "download")
CHECK_PERIOD = 100
"""Updates between digests of the parameters themselves in the journal."""


class Mirror:
    """Follows the journal like every client, and plans how each client catches up.

    Parameters
    ----------
    half : nn.Module
        The client half, or the whole model, at version 0; it is kept at the journal's head from
        then on.
    run_key : bytes
        Key of the run's directions, 16 bytes.
    law : str
        Direction law.
    optimizer : OptimizerSpec
        The client optimiser.
    policy : {"auto", "replay", "download"}
        How to bring clients up to date; "auto" takes whichever is fewer bytes.
    apart : tuple of bool, optional
        Which trained tensors are told apart by channel, see `JournalHeader`.
    """

    def __init__(
        self,
        half: nn.Module,
        run_key: bytes,
        law: str,
        optimizer: OptimizerSpec,
        policy: str,
        apart: tuple[bool, ...] = (),
    ) -> None:
        self.half = half
        self.vector = ParameterVector(half, trained_names(half))  # none under a frozen client
        header = JournalHeader(
            run_key=run_key,
            manifest_digest=manifest_digest(self.vector.manifest(), carried_state(half)),
            params_digest=params_digest(self.vector.anchor),
            law=law,
            optimizer=optimizer,
            apart=apart,
        )
        self.journal = Journal(header)
        self.replica = Replica.initial(self.vector.anchor, header, self.vector.shapes)
        self._policy = policy
        self._stands: dict[int, int] = {}

    @property
    def noise_size(self) -> int:
        """Elements among which the noise of an estimate arises: all, or those of one channel."""
        apart = self.journal.header.apart
        return Channels(self.vector.shapes, apart).noise_size if apart else self.vector.size

    @property
    def version(self) -> int:
        """Number of updates so far."""
        return self.journal.version

    @property
    def digest(self) -> str:
        """The journal's running digest, in hex."""
        return self.journal.digest.hex()

    def update(self, entry: Entry) -> None:
        """Append an entry to the journal and apply it.

        Raises
        ------
        JournalError
            If the entry does not fit or its result is not finite; journal and parameters are then
            as before.
        """
        trial = self.replica.clone()
        trial.apply(entry)
        if not torch.isfinite(trial.theta).all():
            raise JournalError(
                f"The update of round {entry.round} gives parameters that are not finite; it is "
                "left out. Lower client-lr or scalar-limit if this repeats."
            )
        if (self.version + 1) % CHECK_PERIOD == 0:
            entry = dataclasses.replace(entry, checkpoint=trial.params_digest())
            trial = self.replica.clone()
            trial.apply(entry)
        self.journal.append(entry)
        self.replica = trial
        self.vector.load(trial.theta)
        self._compact()

    def _compact(self) -> None:
        """Forget entries that nobody would replay because a download is fewer bytes."""
        journal = self.journal
        if journal.version % CHECK_PERIOD or self._policy == "replay":
            return
        while journal.bytes_since(journal.base) > self._download_bytes():
            journal.compact(min(journal.base + CHECK_PERIOD // 2, journal.version))

    def _download_bytes(self) -> int:
        slots = self.replica.nbytes - 4 * self.vector.size
        return state_bytes(travelling_state(self.half)) + slots

    def sync(self, member: Member) -> Sync:
        """Plan how a client comes to the current version, from where it is believed to stand."""
        stands = self._stands.get(member.node_id)
        if stands is None:
            return self._full()
        base = self.journal.digest_at(stands).hex() if stands >= self.journal.base else ""
        plan = Sync("none", stands, base, self.version, self.digest)
        if stands == self.version:
            return plan
        if self._policy == "download" or stands < self.journal.base:
            return self._full()
        data = self.journal.tail(stands)
        if data is None or (self._policy == "auto" and len(data) > self._download_bytes()):
            return self._full()
        return dataclasses.replace(plan, kind="tail", tail=data)

    def _full(self) -> Sync:
        state = {f"weights.{k}": v for k, v in pack_state(travelling_state(self.half)).items()}
        state["header"] = np.frombuffer(self.journal.header.encode(), dtype=np.uint8)
        if self.version:
            arrays = self.replica.to_arrays()
            del arrays["theta"]  # it is among the weights
            state |= arrays
            state["params"] = np.frombuffer(self.replica.params_digest(), dtype=np.uint8)
        return Sync("full", 0, "", self.version, self.digest, state=state)

    def synced(self, member: Member) -> None:
        """Note that a client showed that it stands at the current version."""
        self._stands[member.node_id] = self.version

    def lost(self, member: Member, reply: StaleReply) -> None:
        """Note where a client says it stands; a version it cannot prove counts as none."""
        self._stands.pop(member.node_id, None)
        journal = self.journal
        if journal.base <= reply.version <= journal.version:
            if journal.digest_at(reply.version).hex() == reply.digest:
                self._stands[member.node_id] = reply.version

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as named tensors, for a checkpoint."""
        found = {
            f"replica.{name}": torch.from_numpy(array)
            for name, array in self.replica.to_arrays().items()
        }
        found |= {f"client.{k}": v.clone() for k, v in travelling_state(self.half).items()}
        found["journal"] = torch.frombuffer(bytearray(self.journal.encode()), dtype=torch.uint8)
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put everything back.

        Raises
        ------
        JournalError
            If the checkpoint belongs to another run.
        """
        journal = Journal.decode(tensors["journal"].numpy().tobytes(), "The checkpoint's journal")
        if journal.header != self.journal.header:
            raise JournalError(
                "The checkpoint belongs to another run (its seed, model, directions, subspaces or "
                "client optimiser differ); resume with the configuration it was made with."
            )
        arrays = {name: value.numpy() for name, value in under("replica.", tensors).items()}
        self.journal = journal
        self.replica = Replica.from_arrays(arrays, journal.header, self.vector.shapes)
        self.vector.load(self.replica.theta)
        kept = under("client.", tensors)
        for name, value in buffers_of(self.half, travelling_state(self.half)).items():
            value.copy_(kept[name])
        self._stands.clear()
