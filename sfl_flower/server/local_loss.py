"""The server side that methods with a local loss share: CSE-FSL, HERON-SFL, FSL-SAGE.

Clients take h local steps on the loss of an auxiliary head and send the smashed data of every
k-th; nothing comes back within the round.  One server half takes a step for each of these batches,
client after client in the order of their partitions (the sequential pass of SplitFed V2).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import RecordDict
from torch import Tensor, nn

from sfl_flower.config import check_choice, check_range
from sfl_flower.data import client_samples, steps_per_epoch
from sfl_flower.errors import ConfigError, CutError, WireError
from sfl_flower.server.aggregate import client_weight, mean_state
from sfl_flower.server.client_rate import ClientRateSettings
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.roster import Member
from sfl_flower.server.strategy import Outcome, SplitStrategy
from sfl_flower.server.tensors import under
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.wire import LocalReply, LocalRequest, pack_state

__all__ = ["LocalLossSettings", "LocalLossStrategy"]


@dataclass(frozen=True)
class LocalLossSettings(ClientRateSettings):
    """Settings of methods with a local loss.

    Attributes
    ----------
    local_steps : int
        h, local steps per client and round; 0 means one local epoch.
    upload_every : int
        k: every k-th step sends smashed data, the first one included; at most h.
    head : str
        The auxiliary head: "linear", "pooled", "pooled:SIDE", "blocks:LAYER" or "task".
    head_init : {"random", "copy"}
        Fresh weights, or those of the server half where the head has its layers.
    client_lr : float
        Learning rate of client half and head.
    client_momentum, client_weight_decay : float
        Settings of the client optimiser.
    client_state : {"fresh", "kept"}
        Whether the client optimiser's state starts anew each round or stays on each client.
    """

    local_steps: int = 1
    upload_every: int = 1
    head: str = "linear"
    head_init: str = "random"
    client_momentum: float = 0.9
    client_weight_decay: float = 0.0
    client_state: str = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("local_steps", self.local_steps, 0, 10**6)
        check_range("upload_every", self.upload_every, 1, 10**6)
        if self.local_steps:
            self.check_period(self.local_steps)
        check_choice("head_init", self.head_init, ("random", "copy"))
        check_range("client_momentum", self.client_momentum, 0, 0.9999)
        check_range("client_weight_decay", self.client_weight_decay, 0)
        check_choice("client_state", self.client_state, ("fresh", "kept"))

    def check_period(self, steps: int) -> None:
        """Refuse an upload period that is longer than a round of so many steps."""
        if self.upload_every > steps:
            raise ConfigError(
                f"upload_every is {self.upload_every}, but a client takes {steps} local steps in a "
                f"round; it must be in [1, {steps}]."
            )

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the local steps of a client with so many samples."""
        return self.local_steps or steps_per_epoch(samples, batch_size)

    def optimizer_options(self) -> dict[str, Any]:
        """Return the client optimiser's own settings, the learning rate left out."""
        raise NotImplementedError


class LocalLossStrategy(SplitStrategy):
    """Server side of a method with a local loss; see the module and `SplitStrategy`."""

    settings: LocalLossSettings
    request_type: ClassVar[type[LocalRequest]]

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
        self.head = self.task.build_head(self.config.seed, settings.head, settings.head_init)

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

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round: local steps everywhere, the server's pass, the means."""
        if not cohort:
            return Outcome([], 0, {})
        self.check_uploads(round)
        packed = pack_state(travelling_state(self.client_half))
        head = pack_state(travelling_state(self.head))
        requests = {member: self.request(round, member, packed, head) for member in cohort}
        replies = exchange.send(requests, self.reader(requests))
        return self.close_round(round, replies, exchange)

    def check_uploads(self, round: int) -> None:
        """Before the first round, refuse an upload period too long for some client.

        Raises
        ------
        ConfigError
            If a client takes fewer steps in a round.
        """
        if round == self._first + 1:
            # Of all clients, not of the cohort alone: a later cohort must not end the run.
            fewest = self._roster.fewest
            self.settings.check_period(self.settings.batches(fewest, self.config.batch_size))

    def request(
        self,
        round: int,
        member: Member,
        packed: Mapping[str, np.ndarray],
        head: Mapping[str, np.ndarray],
    ) -> LocalRequest:
        """Return the request for a round of local steps."""
        settings, config = self.settings, self.config
        steps = settings.batches(member.samples, config.batch_size)
        return self.request_type(
            round=round,
            steps=steps,
            upload_every=settings.upload_every,
            batch_size=config.batch_size,
            setup=self.setup,
            head=settings.head,
            optimizer=json.dumps(
                {**settings.optimizer_options(), "lr": self.client_lr(round)}, sort_keys=True
            ),
            keep_state=settings.client_state == "kept",
            weights=packed,
            head_weights=head,
            meter=self.metering(round),
            **self.own_options(),
        )

    def client_lr(self, round: int) -> float:
        """Return the client's learning rate in a round."""
        return self.settings.client_rate(round, self.config.rounds)

    def uploads(self, steps: int) -> int:
        """Return how many of a client's local steps send smashed data."""
        return -(-steps // self.settings.upload_every)

    def own_options(self) -> dict[str, Any]:
        """Return what the method's request has beyond the shared fields."""
        return {}

    def reader(self, requests: Mapping[Member, LocalRequest]) -> Callable[[RecordDict], LocalReply]:
        """Return the function that reads and checks the replies to these requests."""
        request = next(iter(requests.values()))

        def read(content: RecordDict) -> LocalReply:
            reply = LocalReply.from_content(content)
            self.expect_z(reply.z)
            if reply.round != request.round:
                raise WireError(f"it answers round {reply.round}, asked was round {request.round}.")
            if (largest := int(reply.sizes.max(initial=0))) > request.batch_size:
                raise WireError(
                    f"it has a mini-batch of {largest} samples, asked were at most "
                    f"{request.batch_size}."
                )
            self.check_reply(reply)
            return reply

        return read

    @abstractmethod
    def check_reply(self, reply: LocalReply) -> None:
        """Raise `WireError` where a reply does not bring what the method averages."""

    @abstractmethod
    def average(
        self, round: int, replies: Mapping[Member, LocalReply], weights: list[float]
    ) -> None:
        """Bring what clients trained together."""

    def close_round(
        self, round: int, replies: Mapping[Member, LocalReply], exchange: Exchange
    ) -> Outcome:
        """Let the server half learn from the replies, then average what clients trained."""
        losses: list[float] = []
        used: dict[Member, LocalReply] = {}
        for member, reply in replies.items():
            want = self.settings.batches(member.samples, self.config.batch_size)
            samples = client_samples(member.samples, self.config.batch_size, want)
            try:
                if len(reply.sizes) != self.uploads(want):
                    raise WireError(
                        f"it has smashed data of {len(reply.sizes)} steps, asked were every "
                        f"{self.settings.upload_every} of {want}."
                    )
                if reply.taken is not None and len(reply.taken) != want:
                    raise WireError(f"it has {len(reply.taken)} local steps, asked were {want}.")
                if reply.samples != samples:
                    raise WireError(
                        f"it says {reply.samples} samples; {want} steps of this client are "
                        f"{samples}."
                    )
                if reply.y.size:
                    self.server.check_labels(reply.y)
                losses += self.serve(round, member, reply)
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            used[member] = reply
        self.book_usage(reply.usage for reply in used.values())
        exchange.tally.replies = len(used)
        if not used:
            return Outcome(losses, 0, {})
        weights = [client_weight(self.config.mean, reply.samples) for reply in used.values()]
        self.average(round, used, weights)
        taken = [reply.taken for reply in used.values() if reply.taken is not None]
        if skipped := sum(int(np.count_nonzero(steps == 0)) for steps in taken):
            exchange.tally.note(f"{skipped} local steps were skipped: a loss was not finite.")
        return Outcome(
            losses,
            sum(reply.samples for reply in used.values()),
            {
                "client_lr": self.client_lr(round),
                "local_loss": float(np.mean([reply.loss for reply in used.values()])),
            },
        )

    def serve(self, round: int, member: Member, reply: LocalReply) -> list[float]:
        """Take a server step for each uploaded batch of a client; return the losses."""
        losses = []
        for number, (z, y) in enumerate(reply.batches()):
            step = number * self.settings.upload_every
            losses.append(self.server.learn(z, y, (round, member.partition, step)))
        return losses

    def average_both(self, states: list[dict[str, Tensor]], weights: list[float]) -> None:
        """Load the weighted means of states whose names begin with ``client.`` and ``head.``."""
        mean = mean_state(states, weights)
        load_travelling(self.client_half, under("client.", mean))
        if head := under("head.", mean):  # else the server trains it
            load_travelling(self.head, head)
