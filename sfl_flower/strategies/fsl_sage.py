"""FSL-SAGE (arXiv 2505.23182): clients step along cut gradients that auxiliary heads estimate.

Each client has a head of its own that lives here: it is never averaged and never trained on the
client, and goes down only after an alignment.  Every l rounds the server half's gradients on the
client's last smashed data are refreshed and the head is aligned with them.  In such a round the
smashed data of step 0 come ahead, in an exchange of their own: the server half takes its steps on
those of all clients, then heads are aligned, then clients take their steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor

from sfl_flower.config import Settings, check_choice, check_range
from sfl_flower.data import generator, seeded_torch
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.server.aggregate import mean_state
from sfl_flower.server.alignment import REFRESH_MODES, check_alignable, refresh
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.head_bank import HeadBank
from sfl_flower.server.roster import Member
from sfl_flower.server.strategy import Outcome
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.strategies.cse_fsl import CSEFSL, CSEFSLSettings
from sfl_flower.training.modes import eval_mode
from sfl_flower.training.optim import FIRST_ORDER
from sfl_flower.wire import (
    ForwardReply,
    LocalReply,
    LocalRequest,
    StaleReply,
    is_stale,
    pack_state,
    unpack_state,
)
from sfl_flower.wire.fsl_sage import FSLSAGERequest, FSLSAGEUploadRequest

__all__ = ["FSLSAGE", "FSLSAGESettings"]


@dataclass(frozen=True)
class FSLSAGESettings(CSEFSLSettings):
    """Settings of FSL-SAGE.

    Attributes
    ----------
    align_every : int
        l: heads are aligned in round 1 and every l rounds after it; more than 1 is the paper's
        lazy variant.
    align_epochs : int
        Passes over a client's buffer in an alignment.
    align_batch : int
        Samples per step of an alignment, at most the buffer; 0 takes the whole buffer.
    buffer : int
        Samples of a client that the server keeps, the last ones; at least a mini-batch.
    head_optimizer : {"sgd", "adam", "adamw"}
        Optimiser of the alignment; its state stays with each head.
    head_lr : float
        Learning rate of the alignment.
    refresh_mode : {"batch", "running", "published"}
        What BatchNorm of the server half normalises with when it gives the gradients to match: the
        buffer's own statistics, its running ones, or the buffer's own, which then move the running
        ones as in the published code.
    warm_start : bool
        Whether round 1 is one of CSE-FSL, whose mean head is the one that all start from; heads
        are then aligned in round 2 and every l rounds after it.
    """

    align_every: int = 10
    align_epochs: int = 100
    align_batch: int = 0
    buffer: int = 1000
    head_optimizer: str = "adam"
    head_lr: float = 1e-3
    refresh_mode: str = "batch"
    warm_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("align_every", self.align_every, 1, 10**6)
        check_range("align_epochs", self.align_epochs, 1, 10**6)
        check_range("buffer", self.buffer, 1, 10**9)
        check_range("align_batch", self.align_batch, 0)
        if self.align_batch > self.buffer:
            raise ConfigError(
                f"align_batch is {self.align_batch}, but the buffer holds {self.buffer} samples; "
                f"it must be in [1, {self.buffer}], or 0 for the whole buffer."
            )
        check_choice("head_optimizer", self.head_optimizer, FIRST_ORDER)
        check_range("head_lr", self.head_lr, 0)
        check_choice("refresh_mode", self.refresh_mode, REFRESH_MODES)


class FSLSAGE(CSEFSL):
    """Server side of FSL-SAGE; see the module and `LocalLossStrategy`."""

    name: ClassVar[str] = "fsl_sage"
    settings_type: ClassVar[type[Settings]] = FSLSAGESettings
    request_type: ClassVar[type[LocalRequest]] = FSLSAGERequest
    settings: FSLSAGESettings

    def prepare(self) -> None:
        """Build the head that all clients start from.

        Raises
        ------
        ConfigError
            If the buffer cannot hold a mini-batch.
        CutError
            If the head does not fit the cut, or cannot be differentiated twice.
        """
        super().prepare()
        if self.settings.buffer < self.config.batch_size:
            raise ConfigError(
                f"buffer is {self.settings.buffer}, but a mini-batch has up to "
                f"{self.config.batch_size} samples; it must be at least {self.config.batch_size}."
            )
        x, y = self.task.batch(self.task.samples("test"), slice(0, 2))
        with torch.no_grad(), eval_mode(self.client_half):
            z = self.client_half(x)
        check_alignable(self.settings.head, self.head, self.task.loss, z, y)
        self.bank = HeadBank(
            self.head, self.settings.buffer, self.settings.head_optimizer, self.settings.head_lr
        )
        self._held: dict[Member, str] = {}
        self._warm = self._ahead = False

    def aligns(self, round: int) -> bool:
        """Tell whether heads are aligned in a round."""
        first = 2 if self.settings.warm_start else 1
        return round >= first and (round - first) % self.settings.align_every == 0

    def method_tensors(self) -> dict[str, Tensor]:
        """Return client half, heads, their optimisers' state and buffers for a checkpoint."""
        return super().method_tensors() | self.bank.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put client half, heads, their optimisers' state and buffers back."""
        super().load_method_tensors(tensors)
        self.bank.load_tensors(tensors)

    # A round

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round: where heads are aligned, uploads and alignment; then local steps."""
        self._warm = self.settings.warm_start and round == 1
        self._ahead = self.aligns(round)
        if self._warm:
            return super().train_round(round, cohort, exchange)
        self.check_uploads(round)
        packed = pack_state(travelling_state(self.client_half))
        losses: list[float] = []
        left: list[float] = []
        requests: dict[Member, LocalRequest] = {}
        if self._ahead:
            cohort, losses = self.first_uploads(round, cohort, packed, exchange)
        for member in cohort:
            if self._ahead:
                left.append(self.align(round, member, exchange))
            requests[member] = self.steps_request(round, member, {} if self._ahead else packed)
            exchange.push({member: requests[member]})  # it works while others are aligned
        if not requests:
            return Outcome(losses, 0, {})
        replies = self._collect(round, requests, packed, exchange)
        outcome = self.close_round(round, replies, exchange)
        extra = {"alignment_loss": float(np.mean(left))} if left else {}
        return replace(outcome, losses=losses + outcome.losses, extra={**outcome.extra, **extra})

    def first_uploads(
        self,
        round: int,
        cohort: list[Member],
        packed: Mapping[str, np.ndarray],
        exchange: Exchange,
    ) -> tuple[list[Member], list[float]]:
        """Take step 0's smashed data of all clients, and a server step for each.

        Returns
        -------
        members : list of Member
            The clients whose batch was used.
        losses : list of float
            The server half's losses.
        """
        requests = {
            member: FSLSAGEUploadRequest.of(self.request(round, member, packed, {}))
            for member in cohort
        }

        def read(content: RecordDict) -> ForwardReply:
            reply = ForwardReply.from_content(content)
            self.expect_z(reply.z)
            if reply.round != round or len(reply.sizes) != 1:
                raise WireError(
                    f"it has {len(reply.sizes)} mini-batches of round {reply.round}, asked was 1 "
                    f"of round {round}."
                )
            if len(reply.y) > self.config.batch_size:
                raise WireError(
                    f"it has a mini-batch of {len(reply.y)} samples, asked were at most "
                    f"{self.config.batch_size}."
                )
            return reply

        members: list[Member] = []
        losses: list[float] = []
        for member, reply in exchange.send(requests, read).items():
            try:
                losses.append(self._use(round, member, 0, reply.z, reply.y))
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            self.book_usage([reply.usage])
            members.append(member)
        return members, losses

    def align(self, round: int, member: Member, exchange: Exchange) -> float:
        """Align a client's head with the server half; return what mismatch its last pass had."""
        settings, words = self.settings, (self.config.seed, round, member.partition)
        head = self.bank.head(member.partition)
        before = head.tensors()
        z, y = self.bank.buffer(member.partition).samples()
        with seeded_torch("alignment", *words):  # of dropout
            losses = head.align(
                self.task.loss,
                z,
                y,
                refresh(self.server.module, self.task.loss, z, y, settings.refresh_mode),
                settings.align_epochs,
                settings.align_batch or settings.buffer,
                generator("alignment order", *words),
            )
        if not (np.isfinite(losses).all() and head.finite()):
            head.load_tensors(before)
            exchange.tally.note(
                f"The alignment of client {member.partition}'s head is not finite, so it keeps the "
                "head it had; lower head-lr if this repeats."
            )
        self.bank.changed(member.partition)
        return losses[-1]

    def steps_request(
        self, round: int, member: Member, packed: Mapping[str, np.ndarray]
    ) -> FSLSAGERequest:
        """Return the request for local steps; the head comes along unless the client holds it."""
        digest, held = self.bank.digest(member.partition), self._held.get(member)
        head = {} if held == digest else pack_state(self.bank.state(member.partition))
        request = self.request(round, member, packed, head)
        assert isinstance(request, FSLSAGERequest)
        return replace(request, digest=digest)

    def _collect(
        self,
        round: int,
        requests: Mapping[Member, LocalRequest],
        packed: Mapping[str, np.ndarray],
        exchange: Exchange,
    ) -> dict[Member, LocalReply]:
        """Return the replies; clients that lost weights or head get both and are asked again."""
        whole = self.reader(requests)

        def read(content: RecordDict) -> LocalReply | StaleReply:
            return StaleReply.from_content(content) if is_stale(content) else whole(content)

        answers = exchange.collect(read)
        stale = [member for member, reply in answers.items() if isinstance(reply, StaleReply)]
        if stale:
            for member in stale:
                self._held.pop(member, None)
                del answers[member]
            again = {member: self.steps_request(round, member, packed) for member in stale}
            answers |= exchange.send(again, read)
        found: dict[Member, LocalReply] = {}
        for member in requests:
            reply = answers.get(member)
            if isinstance(reply, StaleReply):
                exchange.tally.fail(member, "it has no auxiliary head although it was sent one.")
            elif reply is not None:
                found[member] = reply
                self._held[member] = self.bank.digest(member.partition)
        return found

    # What the shared round asks for

    def own_options(self) -> dict[str, Any]:
        """Return what kind of round it is."""
        return {"ahead": self._ahead, "warm_up": self._warm}

    def uploads(self, steps: int) -> int:
        """Return how many local steps send smashed data, step 0 left out where it came ahead."""
        return super().uploads(steps) - int(self._ahead)

    def serve(self, round: int, member: Member, reply: LocalReply) -> list[float]:
        """Take a server step for each uploaded batch of a client; return the losses."""
        return [
            self._use(round, member, number * self.settings.upload_every, z, y)
            for number, (z, y) in enumerate(reply.batches(), start=int(self._ahead))
        ]

    def _use(self, round: int, member: Member, step: int, z: np.ndarray, y: np.ndarray) -> float:
        loss = self.server.learn(z, y, (round, member.partition, step))
        self.bank.buffer(member.partition).push(z, y)
        return loss

    def check_reply(self, reply: LocalReply) -> None:
        """Refuse a reply that does not bring the client half, or brings more."""
        if self._warm:
            super().check_reply(reply)
            return
        if reply.scalars is not None or reply.head_weights:
            raise WireError("it brings more than the weights of the client half.")
        unpack_state(reply.weights, travelling_state(self.client_half))

    def average(
        self, round: int, replies: Mapping[Member, LocalReply], weights: list[float]
    ) -> None:
        """Average client halves; heads only in the warm start, and only once."""
        if self._warm:
            super().average(round, replies, weights)
            return
        own = travelling_state(self.client_half)
        states = (unpack_state(reply.weights, own) for reply in replies.values())
        load_travelling(self.client_half, mean_state(states, weights))
