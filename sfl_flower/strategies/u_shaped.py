"""U-shaped split learning with forward-only clients: labels stay where they are.

The model is cut twice.  A client holds its lower half and the last layers, the tail; the server the
body in between.  Per round a client sends smashed data z, the server answers with features h, the
client makes a loss of its tail's output and its own labels and sends the gradients at h and at the
tail; the server steps body and tail with them, and sends λ, along which the client probes as in
HO-SFL (arXiv 2603.14773).  The shape is that of U-shaped split learning (arXiv 1812.00564, figure
2b), whose clients run backprop through both of their parts.

With ``server_steps=round`` body and tail take the step that HO-SFL's server half takes.  With
``server_steps=batch`` the body has stepped on other clients' mini-batches since it made a client's
features, so that gradients at features and tail are those of the round's first weights.

What is not sent can still be told: the gradient at the features of a known tail says which class
was right, and a server that looks reads it off.  What hides labels from it is `label_epsilon`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError, CutError, WireError
from sfl_flower.options import Choice, Form, Range
from sfl_flower.server.body import BodyTrainer, TailGradients
from sfl_flower.server.cost import Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.split import adopt, moving_statistics, travelling_state
from sfl_flower.strategies.ho_sfl import HOSFL, HOSFLSettings
from sfl_flower.task.models import TAIL, tailed
from sfl_flower.wire import pack_state, unpack_state
from sfl_flower.wire.ho_sfl import ForwardReply
from sfl_flower.wire.u_shaped import ORDERS, TailReply, TailRequest, UnlabelledReply

__all__ = ["UShaped", "UShapedSettings"]

FEATURE_GRADIENTS, TAIL_GRADIENTS = "gradients at features", "gradients at the tail"
"""What is screened of the tail's answers, each kind apart."""


@dataclass(frozen=True)
class UShapedSettings(HOSFLSettings):
    """Settings of the U-shaped method, beside those of HO-SFL.

    Attributes
    ----------
    tail : str
        The layer of the server half whose output are the features: what follows it is the tail;
        empty for the last after which something is trained.
    tail_order : {"first", "zeroth"}
        How clients find gradients of the tail: by backprop through it alone, or by forwards.
    tail_probes : int
        With tail_order=zeroth: forwards of the tail for the gradient at the features, and as many
        for that at the tail.
    """

    tail: Annotated[str, Form("the name of a layer behind the cut, or empty for the last")] = ""
    tail_order: Annotated[str, Choice(ORDERS)] = "first"
    tail_probes: Annotated[int, Range(1, 100_000)] = 64


_ALONE = {
    "pipeline": (False, "a round has three exchanges that need one another"),
    "secure_sums": (False, "shares of masks travel with other messages"),
    "temporal": (0.0, "what is remembered of a sample goes with its label"),
    "server_passes": (1, "a later pass would meet gradients of a tail that has moved"),
}
"""Options of HO-SFL that this method has at one value only, and why."""


class UShaped(HOSFL):
    """Server side of the U-shaped method; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "u_shaped"
    settings_type: ClassVar[type[Settings]] = UShapedSettings
    facts: ClassVar[Facts] = Facts(
        "forwards on the client, whose labels and last layers stay with it",
        client="zeroth order",
        server="first order",
        journal=True,
        gradients=True,
        labels=False,
    )
    settings: UShapedSettings
    server: BodyTrainer

    @staticmethod
    def cost(parts: Parts) -> None:
        """Return no closed form: it depends on where the tail begins (docs/ledger.md)."""

    @classmethod
    def check_options(cls, config: RunConfig, settings: Settings) -> None:
        """Refuse what `HOSFL` does, and its options that need labels or other exchanges."""
        super().check_options(config, settings)
        told = vars(settings)
        for name, (wanted, why) in _ALONE.items():
            if told[name] != wanted:
                raise ConfigError(
                    f"{name} is {told[name]} with method '{cls.name}': {why}; leave it "
                    f"{str(wanted).lower()}, or take method 'ho_sfl', whose labels travel."
                )

    def new_trainer(self, module: nn.Module) -> BodyTrainer:
        """Return what trains body and tail, and keep the tail."""
        parts = tailed(self.task, self.config.model_seed, self.settings.tail)
        body, self.tail = parts.body.to(self.device), parts.tail.to(self.device)
        self._kind = f"{TAIL}{parts.at}"
        if moving := moving_statistics(self.tail):
            raise CutError(
                f"The tail behind '{parts.at}' has BatchNorm in train mode ('{min(moving)}'), "
                "whose running statistics would move on every client apart; let the tail begin "
                "behind it, or freeze it."
            )
        adopt(body, module)
        adopt(self.tail, module)
        return BodyTrainer(module, body, self.config, self.config.gradients)

    def held_head(self) -> tuple[str, nn.Module]:
        """Return kind and module of the tail, which clients hold."""
        return self._kind, self.tail

    def anchors(
        self, round: int, cohort: list[Member], exchange: Exchange, minibatches: int
    ) -> dict[Member, ForwardReply]:
        """Collect smashed data of a round, and for their features what clients' tails answer.

        Returns
        -------
        dict of Member to ForwardReply
            With the gradient at the features where other methods have labels.
        """
        statistics = self.packed_statistics()
        found = self.ask_in_step(
            cohort,
            exchange,
            lambda member: self.anchor_request(member, round, minibatches, statistics),
            UnlabelledReply.from_reader,
            lambda reply: self.check_sent(reply.z, reply.statistics),
        )
        self.book_usage(reply.usage for reply in found.values())
        brought = {member: reply.z for member, reply in found.items()}
        kept = {m: found[m] for m in self.screening.keep(SMASHED, brought, exchange.tally)}
        answers = self._ask_tails(round, kept, exchange)
        self.book_usage(answer.usage for answer in answers.values())
        used = self._screened(answers, exchange)
        self.server.tell(
            {
                (round, member.partition, step): gradients
                for member in used
                for step, gradients in enumerate(self._at_tail(answers[member]))
            }
        )
        return {member: kept[member].told(answers[member].gradients) for member in used}

    def _ask_tails(
        self, round: int, found: Mapping[Member, UnlabelledReply], exchange: Exchange
    ) -> dict[Member, TailReply]:
        """Send clients the features of their smashed data; return their answers."""
        packed = pack_state(travelling_state(self.tail))
        shapes: dict[int, tuple[int, ...]] = {}
        requests: dict[Member, TailRequest] = {}
        for member, reply in found.items():
            try:
                features = self._features(round, member, reply)
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            shapes[len(features)] = features.shape
            requests[member] = TailRequest(
                round=round,
                batch_size=self.config.batch_size,
                minibatches=self.minibatches,
                setup=self.setup,
                features=features,
                tail=self._kind,
                order=self.settings.tail_order,
                probes=self.settings.tail_probes,
                head_weights=packed,
                meter=self.metering(round),
            )
        return exchange.send(requests, TailReply.from_reader, partial(self._check_tail, shapes))

    def _features(self, round: int, member: Member, reply: UnlabelledReply) -> np.ndarray:
        ends = np.cumsum(reply.sizes)[:-1]
        parts = [
            self.server.features(z, (round, member.partition, step))
            for step, z in enumerate(np.split(reply.z, ends))
        ]
        return np.concatenate(parts)

    def _screened(self, answers: Mapping[Member, TailReply], exchange: Exchange) -> list[Member]:
        """Return whose gradients are not out of all bounds, neither at features nor at the tail."""
        told = {member: answer.gradients for member, answer in answers.items()}
        used = self.screening.keep(FEATURE_GRADIENTS, told, exchange.tally, compared=False)
        at_tail = {
            member: np.concatenate([*map(np.ravel, answers[member].head_weights.values())])
            for member in used
        }
        return self.screening.keep(TAIL_GRADIENTS, at_tail, exchange.tally, compared=False)

    def _check_tail(self, shapes: Mapping[int, tuple[int, ...]], reply: TailReply) -> None:
        """Refuse gradients that do not fit the features or the tail, or are not finite."""
        wanted = shapes.get(reply.samples)
        if reply.gradients.shape != wanted:
            raise WireError(
                f"it has gradients of shape {reply.gradients.shape} at features of shape {wanted}."
            )
        losses = self.minibatches
        if len(reply.losses) != losses or not np.isfinite(reply.losses).all():
            raise WireError(f"it has losses {reply.losses}, expected {losses} finite numbers.")
        self._at_tail(reply)

    def _at_tail(self, reply: TailReply) -> list[TailGradients]:
        """Return what a reply says of the tail, a mini-batch each."""
        names = {name: p for name, p in self.tail.named_parameters() if p.requires_grad}
        steps = range(self.minibatches)
        own: dict[str, Tensor] = {f"{at}.{name}": p for at in steps for name, p in names.items()}
        state = unpack_state(reply.head_weights, own)
        for name, value in state.items():
            if not bool(torch.isfinite(value).all()):
                raise WireError(f"its gradient at the tail's '{name}' is not finite.")
        return [
            TailGradients(float(reply.losses[at]), {name: state[f"{at}.{name}"] for name in names})
            for at in steps
        ]
