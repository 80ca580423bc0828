"""The server half: HO-SFL whose clients send one sign a probe."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from own_method.messages import SignReply
from sfl_flower.config import Settings
from sfl_flower.errors import WireError
from sfl_flower.options import Range
from sfl_flower.server.anchored import AnchoredStrategy
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.mirror import Mirror
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.roster import Member
from sfl_flower.split import check_zeroth_order
from sfl_flower.wire.ho_sfl import ProbeRequest
from sfl_flower.zo import Entry, OptimizerSpec, Probing, client_stream, run_key


@dataclass(frozen=True)
class SignSettings(Settings):
    """Settings of the method; each is an option on the command line, with what it may be.

    Attributes
    ----------
    probes : int
        P, probes per mini-batch.
    mu : float
        μ, the probe length.
    client_lr : float
        Length of a client's step along each direction.
    """

    probes: Annotated[int, Range(1, 4096)] = 8
    mu: Annotated[float, Range(1e-12, 1e6)] = 1e-3
    client_lr: Annotated[float, Range(0)] = 0.02


class SignSFL(AnchoredStrategy):
    """Server side; `sfl_flower.strategies.ho_sfl` is the model."""

    name: ClassVar[str] = "sign_sfl"
    settings_type: ClassVar[type[Settings]] = SignSettings
    facts: ClassVar[Facts] = Facts(
        "forwards on the client that tell a sign each, backprop on the server",
        client="zeroth order",
        server="first order",
        journal=True,
    )
    settings: SignSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        signs = parts.probes  # a byte each
        return ClientCost(
            up=parts.smashed + parts.labels + signs,
            down=parts.gradients + parts.journal,
            memory=parts.probing(held=2 * parts.held),
            seconds=(1 + parts.probes) * parts.forward_seconds,
        )

    def prepare(self) -> None:
        """Check the client half, and start the journal at its current weights."""
        x, _ = self.examples(2)
        check_zeroth_order(self.client_half, example=(x,))
        key = run_key(self.name, self.config.seed)
        self.mirror = Mirror(self.client_half, key, "rademacher", OptimizerSpec("sgd"), "auto")

    def method_tensors(self):
        return self.mirror.tensors()

    def load_method_tensors(self, tensors) -> None:
        self.mirror.load_tensors(tensors)

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Anchors up, λ down, signs up; everyone steps along the mean of the signed directions."""
        losses: list[float] = []
        used: dict[Member, int] = {}
        for member, reply in self.anchors(round, cohort, exchange, 1).items():
            try:
                (found,) = self.backward(member, reply, step=False)
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            used[member] = len(reply.y)
            losses.append(found.loss)
            exchange.push({member: self._request(round, member, found.lam)})
            self.server.add([found], 1.0)
        self.server.step(len(used))
        replies = exchange.collect(SignReply.from_reader, self._check)
        exchange.tally.replies = len(replies)
        if replies:
            self._update(round, replies)
        return Outcome(losses, sum(used.values()), {})

    def _request(self, round: int, member: Member, lam: np.ndarray) -> ProbeRequest:
        return ProbeRequest(
            round=round,
            batch_size=self.config.batch_size,
            minibatches=1,
            setup=self.setup,
            lam=lam,
            stream=client_stream(member.partition),
            probing=Probing(self.settings.probes, "rademacher", self.settings.mu),
            meter=self.metering(round),
        )

    def _check(self, reply: SignReply) -> None:
        if np.abs(reply.scalars).max() > 1:
            raise WireError("it has a sign that is none of -1, 0 and 1.")

    def _update(self, round: int, replies: dict[Member, SignReply]) -> None:
        signs = np.stack([reply.scalars for reply in replies.values()]).astype(np.float32)
        self.mirror.update(
            Entry(
                round=round,
                lr=self.settings.client_lr,
                streams=tuple(client_stream(member.partition) for member in replies),
                steps=1,
                probes=self.settings.probes,
                coefficients=signs / (len(replies) * self.settings.probes),
            )
        )
