"""The server side that methods with a local loss share: CSE-FSL, HERON-SFL, FSL-SAGE.

Clients take h local steps on the loss of an auxiliary head and send the smashed data of every
k-th; nothing comes back within the round.  One server half takes a step for each of these batches,
client after client in the order of their partitions (the sequential pass of SplitFed V2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any, TypeVar

import numpy as np
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, CutError, WireError
from sfl_flower.options import Choice, Form, Range
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.first_buffers import put_first_buffers
from sfl_flower.server.outcome import Outcome, mean_dcor
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.sequential import learn_in_turn
from sfl_flower.server.settings import LocalStepsSettings
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.tally import Tally
from sfl_flower.server.tensors import named, under
from sfl_flower.server.trainer import Trainer
from sfl_flower.server.verdict import tell
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.wire.local import LocalReply, LocalRequest

__all__ = ["LocalLossSettings", "LocalLossStrategy"]


@dataclass(frozen=True)
class LocalLossSettings(LocalStepsSettings):
    """Settings of methods with a local loss, beside local steps and the client's optimiser.

    Attributes
    ----------
    upload_every : int
        k: every k-th step sends smashed data, the first one included; at most h.
    head : str
        The auxiliary head: "linear", "pooled", "pooled:SIDE", "blocks:LAYER" or "task".
    head_init : {"random", "copy"}
        Fresh weights, or those of the server half where the head has its layers.
    """

    upload_every: Annotated[int, Range(1, 10**6)] = 1
    head: Annotated[str, Form("linear, pooled, pooled:SIDE, blocks:LAYER or task")] = "linear"
    head_init: Annotated[str, Choice(("random", "copy"))] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_steps:
            self.check_period(self.local_steps)

    def check_period(self, steps: int) -> None:
        """Refuse an upload period that is longer than a round of so many steps."""
        if self.upload_every > steps:
            raise ConfigError(
                f"upload_every is {self.upload_every}, but a client takes {steps} local steps in a "
                f"round; it must be in [1, {steps}]."
            )

    def check_held(self, fewest: int, batch_size: int) -> None:
        """Refuse an upload period that is longer than some client's round."""
        self.check_period(self.batches(fewest, batch_size))

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample."""
        return 1, 1


Q = TypeVar("Q", bound=LocalRequest)

Check = Callable[[LocalReply], None]
"""Raises `WireError` where a reply does not bring what a method asked its clients for."""


class LocalLossStrategy(SplitStrategy):
    """What methods with a local loss share: the auxiliary head, and the steps of a round."""

    settings: LocalLossSettings

    def prepare(self) -> None:
        """Build the auxiliary head.

        Raises
        ------
        CutError
            If the head does not fit the cut, or the client half has nothing to train.
        """
        if not any(parameter.requires_grad for parameter in self.client_half.parameters()):
            raise CutError(
                f"The client half up to '{self.task.cut}' has no trainable parameter, so method "
                f"'{self.name}' has nothing to train there; cut at a later layer."
            )
        settings = self.settings
        head = self.task.build_head(self.config.model_seed, settings.head, settings.head_init)
        put_first_buffers(self.task, head)
        self.head = head.to(self.device)

    def method_tensors(self) -> dict[str, Tensor]:
        """Return client half and head for a checkpoint."""
        head = {f"head.{k}": v.clone() for k, v in travelling_state(self.head).items()}
        return super().method_tensors() | head

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put client half and head back."""
        self.load_client(under("client.", tensors))
        load_travelling(self.head, under("head.", tensors))

    def held_head(self) -> tuple[str, nn.Module]:
        """Return kind and module of the auxiliary head."""
        return self.settings.head, self.head

    # The steps of a round, in the order in which a method takes them

    def local_request(
        self,
        kind: type[Q],
        round: int,
        member: Member,
        client: Mapping[str, np.ndarray],
        head: Mapping[str, np.ndarray],
        **own: Any,
    ) -> Q:
        """Return the request for a client's local steps.

        Parameters
        ----------
        kind : type
            The method's request.
        round : int
            The round.
        member : Member
            The client.
        client, head : Mapping[str, numpy.ndarray]
            Packed client half and auxiliary head, empty for what the client is to have already.
        **own
            What the method's request has beyond the fields of `LocalRequest`.
        """
        settings, config = self.settings, self.config
        return kind(
            round=round,
            steps=settings.batches(member.samples, config.batch_size),
            upload_every=settings.upload_every,
            batch_size=config.batch_size,
            setup=self.setup,
            head=settings.head,
            optimizer=settings.optimizer_text(round, config.rounds),
            keep_state=settings.client_state == "kept",
            weights=client,
            head_weights=head,
            meter=self.metering(round),
            **own,
        )

    def ask_local(
        self, requests: Mapping[Member, LocalRequest], exchange: Exchange, check: Check
    ) -> dict[Member, LocalReply]:
        """Send requests for local steps; return the replies that answer them."""
        return exchange.send(requests, LocalReply.from_reader, self.rules(check))

    def rules(self, check: Check) -> Check:
        """Return what to check of a reply that answers its request.

        Parameters
        ----------
        check : callable
            What the method asks of it beyond smashed data and labels that can be used.
        """

        def both(reply: LocalReply) -> None:
            self.expect_z(reply.z)
            if reply.y.size:
                self.server.check_labels(reply.y)
            check(reply)

        return both

    def check_both(self, reply: LocalReply) -> None:
        """Refuse a reply whose weights are not those of client half and head."""
        if reply.scalars is not None:
            raise WireError("it brings scalars, asked were weights.")
        if reply.dcor is not None:
            raise WireError("it has a distance correlation, and none was asked for.")
        received_state(reply.weights, travelling_state(self.client_half))
        received_state(reply.head_weights, travelling_state(self.head))

    def serve(
        self,
        replies: Mapping[Member, LocalReply],
        exchange: Exchange,
        trainers: Sequence[Trainer],
        first: int = 0,
    ) -> tuple[dict[Member, LocalReply], list[float]]:
        """Let trainers take a step on every uploaded batch, client after client.

        Parameters
        ----------
        replies : Mapping[Member, LocalReply]
            The replies, in the order in which they are used.
        exchange : Exchange
            Counts the replies that are refused: one whose smashed data cannot be used moves
            nothing.
        trainers : sequence of Trainer
            The server half, and what else learns from smashed data.
        first : int
            The first step whose smashed data the replies bring.

        Returns
        -------
        used : dict[Member, LocalReply]
            The replies that are used.
        losses : list of float
            The server half's loss at each of their batches.
        """
        used: dict[Member, LocalReply] = {}
        losses: list[float] = []
        brought = {member: reply.z for member, reply in replies.items()}
        for member in self.screening.keep(SMASHED, brought, exchange.tally):
            reply = replies[member]
            steps = count(first, self.settings.upload_every)
            batches = [
                (z, y, (reply.round, member.partition, next(steps))) for z, y in reply.batches()
            ]
            try:
                losses += [part.loss for part in learn_in_turn(trainers, batches)]
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            used[member] = reply
        return used, losses

    def average_states(
        self,
        states: Iterable[Mapping[str, Tensor]],
        replies: Mapping[Member, LocalReply],
        tally: Tally,
    ) -> None:
        """Load the mean over clients of states.

        Parameters
        ----------
        states : iterable of Mapping[str, Tensor]
            One a client, names beginning with ``client.`` and ``head.``; what the states lack,
            the client half or the head, stays as it is.
        replies : mapping of Member to LocalReply
            The clients' replies, in the order of the states; they say how many samples each ran.
        tally : Tally
            Is told what the aggregator made of them.
        """
        if not replies:
            return
        weights = [client_weight(self.config.mean, reply.samples) for reply in replies.values()]
        mean = self.aggregator.states(states, weights)
        tell(tally, self.aggregator, [member.partition for member in replies])
        for prefix, module in (("client.", self.client_half), ("head.", self.head)):
            if own := under(prefix, mean):
                load_travelling(module, own)

    def average_both(self, replies: Mapping[Member, LocalReply], tally: Tally) -> None:
        """Load the mean over clients of client halves and heads that came as weights."""
        client, head = travelling_state(self.client_half), travelling_state(self.head)
        self.average_states(
            (
                named("client.", received_state(reply.weights, client))
                | named("head.", received_state(reply.head_weights, head))
                for reply in replies.values()
            ),
            replies,
            tally,
        )

    def outcome(
        self,
        round: int,
        used: Collection[LocalReply],
        losses: list[float],
        exchange: Exchange,
    ) -> Outcome:
        """Book and note what clients say of their steps; return what the round reports."""
        self.book_usage(reply.usage for reply in used)
        exchange.tally.replies = len(used)
        if not used:
            return Outcome(losses, 0, {})
        taken = [reply.taken for reply in used if reply.taken is not None]
        if skipped := sum(int(np.count_nonzero(steps == 0)) for steps in taken):
            exchange.tally.note(f"{skipped} local steps were skipped: a loss was not finite.")
        dcor = mean_dcor(reply.dcor for reply in used)
        return Outcome(
            losses,
            sum(reply.samples for reply in used),
            {
                "client_lr": self.settings.client_rate(round, self.config.rounds),
                "local_loss": float(np.mean([reply.loss for reply in used])),
                **({} if dcor is None else {"dcor": dcor}),
            },
        )
