"""HERON-SFL (arXiv 2601.09076): zeroth-order local steps on the loss of an auxiliary head.

Per step a client runs forwards only and moves client half and head together (the paper), or its
half alone while the server trains the head; the smashed data of every k-th step train the server
half by backprop, batch after batch, and nothing comes back (equations 2, 6, 7 and 8).  A client's
whole walk follows from its h x P scalars, so it sends those
(`uplink=scalars`) or its weights (`uplink=weights`, the paper); both give the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.options import Momentum, Range, Rate
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.following import FollowingStrategy
from sfl_flower.server.guided import GuideSettings, NextGuide, check_local_guide
from sfl_flower.server.local_walks import LocalWalks, WalkSettings, check_walks_down
from sfl_flower.server.nopeek import check_nopeek
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.private import PrivacySettings, check_apart, check_private
from sfl_flower.server.probing import (
    Noise,
    Probes,
    check_dcor,
    check_estimator,
    check_scalars,
    check_stack,
    check_whole,
    note_zeros,
)
from sfl_flower.server.received import check_bounds, received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SCALARS
from sfl_flower.server.settings import Replayable, Schedule, Warmup
from sfl_flower.server.spending import Spending
from sfl_flower.server.tensors import named, under
from sfl_flower.server.trainer import Trainer
from sfl_flower.split import buffers_of, travelling_state
from sfl_flower.training.optim import load_slots, slots
from sfl_flower.wire.heron import WALKS, HERONRequest
from sfl_flower.wire.local import LocalReply
from sfl_flower.zo import (
    OptimizerSpec,
    ParameterVector,
    StepRule,
    trained_names,
)
from sfl_flower.zo.walks import Walking

__all__ = ["HERON", "HERONSettings"]

_TRAINER = "trainer."


@dataclass(frozen=True)
class HERONSettings(GuideSettings, PrivacySettings, WalkSettings):
    """Settings of HERON-SFL, beside those of probes (the paper has one a step).

    The defaults are those that learned best on Fashion-MNIST (``docs/results/heron.md``); the
    paper's recipe is the preset ``heron_resnet18_cifar10``.

    Attributes
    ----------
    client_optimizer : {"sgd", "momentum", "adam", "adamw", "radazo", "hiso"}
        Replayable optimiser of client half and head.
    head_lr : float
        Learning rate of the server's optimiser on the head, for `head_trainer=server`.
    scalar_limit : float
        A reply with |v| / μ above this is not used; for `uplink=scalars`.
    """

    client_optimizer: Replayable = "sgd"
    client_lr: Rate = 0.1
    client_momentum: Momentum = 0.9
    client_lr_schedule: Schedule = "cosine"
    client_lr_warmup: Warmup = 0.05
    probes: Probes = 32
    head_lr: Annotated[float, Range(0)] = 0.02
    scalar_limit: Annotated[float, Range(0)] = 1e6

    def __post_init__(self) -> None:
        super().__post_init__()
        slots = self.spec().slots
        if self.uplink == "scalars" and self.client_state == "kept" and slots:
            raise ConfigError(
                f"uplink=scalars with client_state=kept and client_optimizer="
                f"{self.client_optimizer}{' and a cone' if self.cone else ''}: the server does not "
                "hold each client's optimiser state; use client_state=fresh, client_optimizer=sgd "
                f"{'and cone=0 ' if self.cone else ''}or uplink=weights."
            )

    def spec(self) -> OptimizerSpec:
        """Return the client optimiser without its rate, and the cone."""
        return dataclasses.replace(super().spec(), cone=self.cone)

    def warnings(self) -> list[str]:
        """Return what to mind: a momentum that begins anew at each step has no cone."""
        found = super().warnings()
        if self.cone and self.client_state == "fresh" and self.local_steps == 1:
            found.append(
                f"cone={self.cone:g} has no effect with client_state=fresh and local_steps=1: "
                "there is no momentum at the first step; set more local_steps, or "
                "client_state=kept with uplink=weights."
            )
        return found


class HERON(FollowingStrategy):
    """Server side of HERON-SFL; see the module and `FollowingStrategy`."""

    name: ClassVar[str] = "heron"
    settings_type: ClassVar[type[Settings]] = HERONSettings
    facts: ClassVar[Facts] = Facts(
        "forwards on the client on the loss of an auxiliary head, backprop on the server",
        client="zeroth order",
        server="first order",
        head=True,
    )
    settings: HERONSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        # Scalars up, weights of half and head down, once a round.
        return ClientCost(
            up=parts.smashed + parts.labels + parts.scalars,
            down=parts.weights + parts.head,
            memory=parts.probing(held=parts.held + parts.head),
            seconds=parts.probe_seconds(beside_anchor=True),
        )

    @classmethod
    def check_options(cls, config: RunConfig, settings: Settings) -> None:
        """Refuse also what `check_whole` and its like do, and walks of no mean."""
        assert isinstance(settings, HERONSettings)
        super().check_options(config, settings)
        check_walks_down(config, settings)
        check_local_guide(settings, settings.head_trainer)
        check_whole(config, settings)
        check_private(config, settings, None)

    def prepare(self) -> None:
        """Build the head, and lay what walks out as one vector, as clients do."""
        super().prepare()
        both = nn.ModuleDict({"client": self.client_half, "head": self.head})
        names = trained_names(both, WALKS[self.trains])
        x, y = self.examples(2)
        check_estimator(
            self.settings.probing(),
            both,
            lambda: self.task.loss(self.head(self.client_half(x)), y),
            names,
        )

        def run(x: Tensor) -> Tensor:
            output: Tensor = self.head(self.client_half(x))
            return output

        check_stack(self.settings.probing(), both, run, x, names)
        check_nopeek(self.config, self.settings, x)
        check_apart(self.settings, both, run, x, self.config.seed)
        self.spending = Spending(self.config, self.settings, self.facts)
        self.vector = ParameterVector(both, names)
        settings = self.settings
        own = (settings.clip_norm, settings.scale, settings.walk, settings.guide_rest)
        rule = StepRule(settings.probing().unit, *own)
        shapes, spec = self.vector.shapes, settings.spec()
        walking = Walking(settings.direction, shapes, spec, rule, settings.probes)
        self.walks = LocalWalks(self.vector, walking, self.config, self.name)
        self.trainer: Trainer | None = None
        if self.settings.head_trainer == "server":
            config = dataclasses.replace(self.config, server_lr=self.settings.head_lr)
            task = self.task
            self.trainer = Trainer(self.head, task.loss, task.classes, config, task.ignore_label)
        parts = (self.client_half, self.vector, self.trainer)
        self.next = NextGuide.of(self.settings, self.task, self.config, *parts)

    @property
    def trains(self) -> str:
        """What clients move."""
        return "client" if self.settings.head_trainer == "server" else "both"

    @property
    def trained_here(self) -> tuple[str, ...]:
        """The head, where the server trains it."""
        return ("head",) if self.trains == "client" else ()

    def server_halves(self) -> list[Trainer]:
        """Return the server half, and the head where it is trained here."""
        return [*super().server_halves(), *([] if self.trainer is None else [self.trainer])]

    def noise(self) -> Noise:
        """Return d and the directions of a local step of all clients, whose walks are averaged."""
        probes, clients = self.settings.probes, self.config.cohort
        remedies = ("head_trainer=server",) if self.trains == "both" else ()
        words = f"{probes} probes x {clients} clients"
        noise = Noise(self.vector.size, probes * clients, words, remedies)
        return self.settings.beside_guide(noise)

    def method_tensors(self) -> dict[str, Tensor]:
        """Return client half, head, the state of the head's optimiser and the next guide."""
        state = {} if self.trainer is None else slots(self.trainer.optimizer)
        own = {f"{_TRAINER}{k}": v for k, v in state.items()}
        return super().method_tensors() | own | self.next.tensors() | self.spending.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put client half, head, optimiser state and guide back."""
        super().load_method_tensors(tensors)
        self.next.load_tensors(tensors, self.vector.shapes)
        self.spending.load_tensors(tensors)
        if self.trainer is not None:
            load_slots(self.trainer.optimizer, under(_TRAINER, tensors))

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of HERON-SFL: forward-only steps everywhere, the server's pass, means."""
        settings, lr = self.settings, self.rate(round)
        self.spending.begin(round, cohort, self._roster, self.account, exchange.tally)
        replies = self.ask_in_step(
            HERONRequest,
            round,
            cohort,
            exchange,
            self._check,
            probing=self.spending.of(settings.probing()),
            uplink=settings.uplink,
            trains=self.trains,
            clip_norm=settings.clip_norm,
            scale=settings.scale,
            cone=settings.cone,
            walk=settings.walk,
            guide=self.next.guide,
            guide_rest=settings.guide_rest,
        )
        steps = {
            member: reply.scalars[reply.taken > 0]
            for member, reply in replies.items()
            if reply.scalars is not None and reply.taken is not None
        }
        may = self.spending.comparable
        kept = self.screening.keep(SCALARS, steps, exchange.tally, compared=may)
        replies = {m: reply for m, reply in replies.items() if m in kept or m not in steps}
        arrived = self._arrived(round, replies, exchange)
        note_zeros(exchange.tally, steps.values(), self.settings.probing())
        used, losses = self.serve(
            {member: replies[member] for member in arrived}, exchange, self.server_halves()
        )
        with self.averaging(exchange):
            self.average_states([arrived[m] for m in used], used, exchange.tally)
        if used:
            told = settings.walks_down and not exchange.tally.refused
            walks = self.walks.together(round, lr, used, self.next.guide) if told else None
            self.downlink.advance(exchange.tally, walks)
        self.next.make(round + 1, used, self.settings.upload_every, exchange.tally)
        return self.spending.closed(self.outcome(round, used.values(), losses, exchange))

    def _check(self, reply: LocalReply) -> None:
        """Refuse a reply whose scalars or weights do not fit client half and head."""
        settings = self.settings
        if (reply.scalars is not None) != (settings.uplink == "scalars"):
            raise WireError(f"it does not bring {settings.uplink}, which were asked.")
        check_dcor(reply.dcor, settings.probing())
        self._sent(reply)
        if reply.taken is None or reply.taken.max(initial=0) > 1:
            raise WireError("it does not say which steps it took.")
        if reply.scalars is not None:
            check_scalars(reply.scalars, settings.probing(), settings.scalar_limit)

    def _sent(self, reply: LocalReply) -> dict[str, Tensor]:
        """Return the tensors that a reply brings of client half and head; buffers with scalars."""
        client = travelling_state(self.client_half)
        head = {} if self.trains == "client" else travelling_state(self.head)
        if self.settings.uplink == "scalars":
            client, head = buffers_of(self.client_half, client), buffers_of(self.head, head)
        return named("client.", received_state(reply.weights, client)) | named(
            "head.", received_state(reply.head_weights, head)
        )

    def rate(self, round: int) -> float:
        """Return the learning rate of the clients' steps in a round."""
        return self.settings.client_rate(round, self.config.rounds)

    def _arrived(
        self, round: int, replies: Mapping[Member, LocalReply], exchange: Exchange
    ) -> dict[Member, dict[str, Tensor]]:
        """Return where each client's steps led, rebuilt from its scalars where those came."""
        found: dict[Member, dict[str, Tensor]] = {}
        own, lr = self.vector.named(self.vector.anchor), self.rate(round)
        for member, reply in replies.items():
            try:
                state = self._sent(reply)
                if reply.scalars is not None and reply.taken is not None:
                    walked = self.walks.end(round, lr, member, reply, self.next.guide)
                    check_bounds(walked, own)
                    state |= walked
            except WireError as error:
                exchange.tally.reject(member, error)
                continue
            found[member] = state
        return found
