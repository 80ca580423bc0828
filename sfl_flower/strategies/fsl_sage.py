"""FSL-SAGE (arXiv 2505.23182): clients step along cut gradients that auxiliary heads estimate.

Each client has a head of its own that lives here: it is never averaged and never trained on the
client, and goes down only after an alignment.  Every l rounds the server half's gradients on the
client's last smashed data are refreshed and the head is aligned with them.  In such a round the
smashed data of step 0 come ahead, in an exchange of their own: the server half takes its steps on
those of all clients, then heads are aligned, then clients take their steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfl_flower.config import Settings
from sfl_flower.data import generator, seeded_torch
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.options import Choice, Natural, Range
from sfl_flower.server.alignment import REFRESH_MODES, check_alignable, refresh
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.downlink import Plan
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.following import FollowingSettings, FollowingStrategy, or_stale
from sfl_flower.server.head_bank import HeadBank
from sfl_flower.server.head_downlink import HeadDownlink
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.sequential import learn_in_turn
from sfl_flower.server.tensors import named
from sfl_flower.split import travelling_state
from sfl_flower.training.modes import eval_mode
from sfl_flower.training.optim import FIRST_ORDER
from sfl_flower.wire import StaleReply
from sfl_flower.wire.downlink import WEIGHTS
from sfl_flower.wire.fsl_sage import (
    FSLSAGERequest,
    FSLSAGEStaleReply,
    FSLSAGEUploadRequest,
    FSLSAGEWarmUpRequest,
)
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.local import LocalReply

__all__ = ["FSLSAGE", "FSLSAGESettings"]


@dataclass(frozen=True)
class FSLSAGESettings(FollowingSettings):
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

    align_every: Annotated[int, Range(1, 10**6)] = 10
    align_epochs: Annotated[int, Range(1, 10**6)] = 100
    align_batch: Natural = 0
    buffer: Annotated[int, Range(1, 10**9)] = 1000
    head_optimizer: Annotated[str, Choice(FIRST_ORDER)] = "adam"
    head_lr: Annotated[float, Range(0)] = 1e-3
    refresh_mode: Annotated[str, Choice(REFRESH_MODES)] = "batch"
    warm_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align_batch > self.buffer:
            raise ConfigError(
                f"align_batch is {self.align_batch}, but the buffer holds {self.buffer} samples; "
                f"it must be in [1, {self.buffer}], or 0 for the whole buffer."
            )

    @property
    def ways(self) -> dict[str, str]:
        """How comes down what all clients hold alike: the client half, but no head."""
        return {"client": self.downlink, "head": WEIGHTS}


class FSLSAGE(FollowingStrategy):
    """Server side of FSL-SAGE; see the module and `FollowingStrategy`."""

    name: ClassVar[str] = "fsl_sage"
    settings_type: ClassVar[type[Settings]] = FSLSAGESettings
    facts: ClassVar[Facts] = Facts(
        "backprop along a gradient that an auxiliary head estimates",
        client="first order",
        server="first order",
        head=True,
    )
    settings: FSLSAGESettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        # An alignment round brings the head as well.
        return ClientCost(
            up=parts.smashed + parts.labels + parts.weights,
            down=parts.weights + parts.head // FSLSAGESettings.align_every,
            memory=parts.backprop + parts.head,
            seconds=parts.backprop_seconds,
        )

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
        x, y = self.examples(2)
        with torch.no_grad(), eval_mode(self.client_half):
            z = self.client_half(x)
        check_alignable(self.settings.head, self.head, self.task.loss, z, y)
        self.bank = HeadBank(
            self.head, self.settings.buffer, self.settings.head_optimizer, self.settings.head_lr
        )
        way = self.settings.head_downlink
        built = partial(self.built_by_clients, "head")
        self.heads = HeadDownlink(self.bank, way, self.head, built)

    def aligns(self, round: int) -> bool:
        """Tell whether heads are aligned in a round."""
        first = 2 if self.settings.warm_start else 1
        return round >= first and (round - first) % self.settings.align_every == 0

    def method_tensors(self) -> dict[str, Tensor]:
        """Return client half, heads, their optimisers' state and buffers for a checkpoint."""
        return super().method_tensors() | self.bank.tensors() | self.heads.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put client half, heads, their optimisers' state and buffers back."""
        super().load_method_tensors(tensors)
        self.bank.load_tensors(tensors)
        self.heads.load_tensors(tensors)

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round: where heads are aligned, uploads and alignment; then local steps."""
        if self.settings.warm_start and round == 1:
            return self._warm_up(round, cohort, exchange)
        ahead = self.aligns(round)
        uploaded: dict[Member, int] = {}
        losses: list[float] = []
        left: list[float] = []
        if ahead:
            uploaded, losses = self._first_uploads(round, cohort, exchange)
            cohort = list(uploaded)
        plans = self.plans(cohort)
        for member, plan in plans.items():
            if ahead:
                left.append(self.align(round, member, exchange))
                plan = plan._replace(weights={})  # they came ahead
            request = self._steps_request(round, member, plan, ahead, exchange)
            exchange.push({member: request})  # it works while others are aligned
        replies = self._collect(round, cohort, ahead, exchange)
        first = self.settings.upload_every if ahead else 0
        used, more = self.serve(replies, exchange, [self.server], first)
        for member, reply in used.items():
            for z, y in reply.batches():
                self.bank.buffer(member.partition).push(z, y)
        own = travelling_state(self.client_half)
        states = (named("client.", received_state(r.weights, own)) for r in used.values())
        with self.averaging(exchange):
            self.average_states(states, used, exchange.tally)
        if used:
            self.downlink.advance(exchange.tally)
        found = self.outcome(round, used.values(), losses + more, exchange)
        # The server learned from these first batches although no steps followed.
        alone = sum(count for member, count in uploaded.items() if member not in used)
        extra = {"alignment_loss": float(np.mean(left))} if left else {}
        return replace(found, samples=found.samples + alone, extra={**found.extra, **extra})

    def _warm_up(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run a round as CSE-FSL does; the mean head is the one that all clients start from."""
        replies = self.ask_in_step(FSLSAGEWarmUpRequest, round, cohort, exchange, self.check_both)
        used, losses = self.serve(replies, exchange, [self.server])
        for member, reply in used.items():
            for z, y in reply.batches():
                self.bank.buffer(member.partition).push(z, y)
        with self.averaging(exchange):
            self.average_both(used, exchange.tally)
        if used:
            self.downlink.advance(exchange.tally)
        return self.outcome(round, used.values(), losses, exchange)

    def _first_uploads(
        self, round: int, cohort: list[Member], exchange: Exchange
    ) -> tuple[dict[Member, int], list[float]]:
        """Take step 0's smashed data of all clients, and a server step for each.

        Returns
        -------
        uploaded : dict[Member, int]
            The clients whose batch was used, and its samples.
        losses : list of float
            The server half's losses.
        """
        uploaded: dict[Member, int] = {}
        losses: list[float] = []

        def rules(reply: ForwardReply | StaleReply) -> None:
            if isinstance(reply, ForwardReply):
                self.expect_z(reply.z)
            else:
                self.check_stands()

        def ask(members: Iterable[Member]) -> dict[Member, ForwardReply | StaleReply]:
            requests = {
                member: self.local_request(
                    FSLSAGEUploadRequest, round, member, plan.weights, {}, **plan.told
                )
                for member, plan in self.plans(members).items()
            }
            return exchange.send(requests, or_stale(ForwardReply), rules)

        replies = self.brought_up(cohort, ask(cohort), ask, exchange)
        brought = {member: reply.z for member, reply in replies.items()}
        for member in self.screening.keep(SMASHED, brought, exchange.tally):
            reply = replies[member]
            batch = (reply.z, reply.y, (round, member.partition, 0))
            try:
                losses += [part.loss for part in learn_in_turn([self.server], [batch])]
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            self.bank.buffer(member.partition).push(reply.z, reply.y)
            self.book_usage([reply.usage])
            uploaded[member] = len(reply.y)
        return uploaded, losses

    def align(self, round: int, member: Member, exchange: Exchange) -> float:
        """Align a client's head with the server half; return what mismatch its last pass had."""
        settings, words = self.settings, (self.config.seed, round, member.partition)
        head = self.bank.head(member.partition)
        before = head.tensors()
        kept = self.bank.buffer(member.partition).samples()
        z, y = (part.to(self.device) for part in kept)
        with seeded_torch("alignment", *words):  # of dropout
            losses = head.align(
                self.task.loss,
                z,
                y,
                refresh(self.server.running, self.task.loss, z, y, settings.refresh_mode),
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
        self.heads.changed(member.partition, exchange.tally)
        return losses[-1]

    def _steps_request(
        self, round: int, member: Member, plan: Plan, ahead: bool, exchange: Exchange
    ) -> FSLSAGERequest:
        """Return the request for local steps; what the client holds does not come along."""
        head, told = self.heads.plan(member, exchange.tally)
        own = {**plan.told, **told}
        return self.local_request(
            FSLSAGERequest, round, member, plan.weights, head, ahead=ahead, **own
        )

    def _collect(
        self, round: int, cohort: list[Member], ahead: bool, exchange: Exchange
    ) -> dict[Member, LocalReply]:
        """Return the replies; clients that lost weights or head get them and are asked again."""

        def rules(reply: LocalReply | StaleReply) -> None:
            if isinstance(reply, LocalReply):
                self.rules(self._check)(reply)

        def ask(members: Iterable[Member]) -> dict[Member, LocalReply | StaleReply]:
            for member, plan in self.plans(members).items():
                exchange.push({member: self._steps_request(round, member, plan, ahead, exchange)})
            return exchange.collect(read, rules)

        read = or_stale(LocalReply, FSLSAGEStaleReply)
        found = self.brought_up(cohort, exchange.collect(read, rules), ask, exchange)
        for member in found:
            self.heads.synced(member)
        return found

    def lost(self, member: Member, reply: StaleReply | None) -> None:
        """Note what a client says that it holds of client half and head."""
        super().lost(member, reply)
        if reply is None or isinstance(reply, FSLSAGEStaleReply):
            self.heads.lost(member, reply.head if reply else "")

    def _check(self, reply: LocalReply) -> None:
        """Refuse a reply that does not bring the client half, or brings more."""
        if reply.scalars is not None or reply.head_weights:
            raise WireError("it brings more than the weights of the client half.")
        received_state(reply.weights, travelling_state(self.client_half))
