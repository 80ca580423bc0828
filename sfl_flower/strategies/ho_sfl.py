"""HO-SFL: backprop on the server, projected probes on the clients, scalars in between.

Per round (arXiv 2603.14773, section 3): each of K clients sends smashed data z; the server takes
one step with the mean gradient and returns λ, the gradient of each client's own mean loss at z;
the client answers with ``v_p = <λ, f_c(x; θ_c + μ u_p) - z>`` for P directions; everyone applies
``g = 1/(P μ) Σ_p mean_m(v_{m,p}) u_p``.  Only scalars are aggregated, so its cost does not grow
with the model.

With ``server_steps=batch`` the server half steps after every mini-batch, as SplitFed V2's does, and
a client's λ is taken at its turn, before the step on that batch; with more `server_passes` it goes
over them again while clients probe.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from torch import Tensor

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import JournalError
from sfl_flower.options import Choice, ClientMode, Minibatches, Range, Rate
from sfl_flower.server import channels
from sfl_flower.server.aggregate import check_aggregator, client_weight
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.guide import GuideMaker, guided_entry
from sfl_flower.server.guided import GuideSettings, check_guide
from sfl_flower.server.journalled import JournalledStrategy
from sfl_flower.server.mirror import SYNC_POLICIES, Mirror
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.probing import (
    Noise,
    Probes,
    check_estimator,
    check_scalars,
    check_stack,
    check_whole,
    note_zeros,
    round_noise,
)
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SCALARS
from sfl_flower.server.settings import ClientOptimizerSettings, Replayable
from sfl_flower.server.turns import ServerPaceSettings
from sfl_flower.split import check_zeroth_order
from sfl_flower.training.modes import eval_mode
from sfl_flower.wire.ho_sfl import ProbeReply, ProbeRequest
from sfl_flower.zo import SHARED_STREAM, Entry, Guide, OptimizerSpec, client_stream, run_key

__all__ = ["HOSFL", "HOSFLSettings"]


@dataclass(frozen=True)
class HOSFLSettings(GuideSettings, ServerPaceSettings, ClientOptimizerSettings):
    """Settings of HO-SFL, beside those of probes and of the client's optimiser.

    The defaults are those that learned most on the validation splits of three small tasks
    (``docs/results/defaults.md``); the papers' settings are presets.

    Attributes
    ----------
    minibatches : int
        Mini-batches per exchange, each with its own λ and its own directions at the same anchor.
    directions : {"own", "shared"}
        Whether each client probes along directions of its own, K x P of them in all, or the
        round's clients share P (the paper).
    client_optimizer : {"sgd", "momentum", "adam", "adamw", "radazo", "hiso"}
        Replayable optimiser of the client half.
    scalar_limit : float
        A reply with |v| / μ above this is not used.
    sync : {"auto", "replay", "download"}
        How clients that missed rounds catch up; "auto" takes whichever is fewer bytes.
    scalars : {"batch", "channel"}
        What a probe gives a scalar of: the mini-batch (the paper), or besides each channel of the
        smashed data, which the last layer's rows then take (`sfl_flower.zo.channels`).
    client_mode : {"as_built", "eval"}
        Mode of the client half's modules: as the task built them, or eval.
    """

    probes: Probes = 16
    minibatches: Minibatches = 1
    directions: Annotated[str, Choice(("own", "shared"))] = "own"
    client_optimizer: Replayable = "sgd"
    client_lr: Rate = 0.2
    clip_norm: Annotated[float, Range(0, 1e30)] = 1.0
    scalar_limit: Annotated[float, Range(0)] = 1e6
    sync: Annotated[str, Choice(SYNC_POLICIES)] = "auto"
    scalars: Annotated[str, Choice(channels.SCALARS_OF)] = "batch"
    client_mode: ClientMode = "as_built"

    def spec(self) -> OptimizerSpec:
        """Return the client optimiser without its rate, and the cone."""
        return replace(super().spec(), cone=self.cone)

    @property
    def control(self) -> dict[str, Any]:
        """Options of the frozen client that has the pace, batches and mode of this method."""
        # Where the server steps after every mini-batch, it does not matter how many come at once.
        together = {"minibatches": self.minibatches} if self.server_steps == "round" else {}
        return {**super().control, **together}

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the mini-batches of a client in a round."""
        return self.minibatches


class HOSFL(JournalledStrategy):
    """Server side of HO-SFL; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "ho_sfl"
    settings_type: ClassVar[type[Settings]] = HOSFLSettings
    facts: ClassVar[Facts] = Facts(
        "forwards on the client, backprop on the server",
        client="zeroth order",
        server="first order",
        journal=True,
        gradients=True,
    )
    settings: HOSFLSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        # z and λ are held; everyone's scalars of the last round come down.
        return ClientCost(
            up=parts.smashed + parts.labels + parts.scalars,
            down=parts.gradients + parts.journal,
            memory=parts.probing(held=2 * parts.held),
            seconds=parts.probe_seconds(beside_anchor=True, apart=True),
        )

    @classmethod
    def check_options(cls, config: RunConfig, settings: Settings) -> None:
        """Refuse an aggregator that needs shared directions without them, and `check_whole`."""
        assert isinstance(settings, HOSFLSettings)
        check_aggregator(config, own_directions=settings.directions == "own")
        check_guide(settings)
        check_whole(config, settings)
        channels.check_channels(settings.scalars, vars(settings))

    def prepare(self) -> None:
        """Check the client half, and start the journal at its current weights.

        Raises
        ------
        CutError
            If something in the client half breaks zeroth-order training.
        """
        settings = self.settings
        with eval_mode(self.client_half) if settings.client_mode == "eval" else nullcontext():
            x, _ = self.examples(2)
            check_zeroth_order(self.client_half, statistics_ok=True, example=(x,))
            check_estimator(settings.probing(), self.client_half, lambda: self.client_half(x))
            check_stack(settings.probing(), self.client_half, self.client_half, x)
            apart = channels.told_apart(settings.scalars, self.client_half, x, self.config.seed)
        self._probing = replace(settings.probing(), channel=apart.channel)
        self.mirror = Mirror(
            self.client_half,
            run_key("ho_sfl", self.config.seed),
            settings.direction,
            settings.spec(),
            settings.sync,
            apart.tensors,
        )
        channels.check_size(apart, self.mirror.vector.shapes, vars(settings), self.config.cohort)
        self.check_pace()
        own = (self.config.seed, self.client_half, self.mirror.vector)
        self._maker = settings.guide_maker(self.task, *own)

    def noise(self) -> Noise:
        """Return d and the directions of a round, those of all clients where they are own."""
        settings, clients = self.settings, self.config.cohort
        shared = settings.directions == "shared"
        noise = round_noise(
            self.mirror.noise_size, settings.probes, settings.minibatches, clients, shared
        )
        apart = self.mirror.journal.header.apart
        return settings.beside_guide(channels.apart_noise(noise, self.client_half, apart))

    def method_tensors(self) -> dict[str, Tensor]:
        """Return journal, parameters, optimiser state and guide for a checkpoint."""
        return self.mirror.tensors() | ({} if self._maker is None else self._maker.tensors())

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put journal, parameters, optimiser state and guide back."""
        self.mirror.load_tensors(tensors)
        if self._maker is not None:
            self._maker.load_tensors(tensors)

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of HO-SFL."""
        settings = self.settings
        anchors = self.anchors(round, cohort, exchange, settings.minibatches)
        # Every batch is committed before the first probe; then clients probe while the server
        # still works on the others' batches.
        losses: list[float] = []
        used: dict[Member, int] = {}
        held: dict[Member, np.ndarray] = {}
        for member, found in self.learned(round, anchors, exchange):
            used[member] = int(anchors[member].y.shape[0])
            losses += [part.loss for part in found]
            lam = np.concatenate([part.lam for part in found])
            if self._maker is None:
                exchange.push({member: self._probe_request(round, member, lam)})
            else:
                held[member] = lam  # a guide is made of all of them
        self.move_statistics({member: anchors[member] for member in used}, exchange)
        if settings.server_steps == "round":
            total = sum(client_weight(self.config.mean, count) for count in used.values())
            self.server.step(total * settings.minibatches)
        guide = self._guide(
            round, {member: (anchors[member].z, lam) for member, lam in held.items()}, used
        )
        for member, lam in held.items():
            exchange.push({member: self._probe_request(round, member, lam, guide)})
        steps = self.pass_again(round, {member: anchors[member] for member in used}, exchange)
        answers = exchange.collect(ProbeReply.from_reader, self._check_scalars)
        brought = {member: answers[member].scalars for member in anchors if member in answers}
        kept = self.screening.keep(SCALARS, brought, exchange.tally)
        scalars = {member: answers[member] for member in kept}
        exchange.tally.replies = len(scalars)
        extra = self._update(round, used, scalars, exchange, guide)
        return Outcome(losses, sum(used.values()), extra, steps_again=steps)

    def _guide(
        self,
        round: int,
        held: Mapping[Member, tuple[np.ndarray, np.ndarray]],
        used: Mapping[Member, int],
    ) -> Guide | None:
        """Return the round's guide from the clients' smashed data and λ, None without one."""
        if self._maker is None or not held:
            return None
        weights = {member: client_weight(self.config.mean, used[member]) for member in held}
        return self._maker.towards(self._seen(self._maker, round, held, weights))

    def _seen(
        self,
        maker: GuideMaker,
        round: int,
        held: Mapping[Member, tuple[np.ndarray, np.ndarray]],
        weights: Mapping[Member, float],
    ) -> Tensor:
        """Return the vector that a round's guide is made of, flat."""
        return maker.gradient(round, ((*held[m], weight) for m, weight in weights.items()))

    def _probe_request(
        self, round: int, member: Member, lam: np.ndarray, guide: Guide | None = None
    ) -> ProbeRequest:
        settings = self.settings
        return ProbeRequest(
            round=round,
            batch_size=self.config.batch_size,
            minibatches=settings.minibatches,
            setup=self.setup,
            lam=lam,
            stream=self._stream(member),
            probing=self._probing,
            meter=self.metering(round),
            guide=guide,
        )

    def _stream(self, member: Member) -> int:
        shared = self.settings.directions == "shared"
        return SHARED_STREAM if shared else client_stream(member.partition)

    def _check_scalars(self, reply: ProbeReply) -> None:
        check_scalars(reply.scalars, self._probing, self.settings.scalar_limit)

    def _update(
        self,
        round: int,
        used: Mapping[Member, int],
        replies: Mapping[Member, ProbeReply],
        exchange: Exchange,
        guide: Guide | None,
    ) -> dict[str, float]:
        """Fold means, weights and 1/(P μ) into coefficients, and journal them."""
        if not replies:
            return {}
        self.book_usage(reply.usage for reply in replies.values())
        weights = np.array([client_weight(self.config.mean, used[member]) for member in replies])
        settings, probing = self.settings, self._probing
        note_zeros(exchange.tally, (reply.scalars for reply in replies.values()), probing)
        scalars = np.stack([reply.scalars for reply in replies.values()]).astype(np.float64)
        own = (probing, settings.clip_norm, settings.scale, guide)
        clipped = np.stack(
            [
                [channels.conditioned(step, *own) for step in reply.scalars]
                for reply in replies.values()
            ]
        )
        if settings.walk:
            shared = settings.directions == "shared"
            clipped *= channels.walk_signs(self.config.seed, round, clipped.shape, shared)
        drawn = clipped.shape[-1] - (guide is not None)
        along, clipped = clipped[..., drawn:], clipped[..., :drawn]
        scale = weights / (weights.sum() * settings.probes * settings.minibatches * probing.unit)
        if settings.directions == "shared":
            coefficients = self.aggregator.scalars(clipped, scale)[None]
            streams: tuple[int, ...] = (SHARED_STREAM,)
        else:
            coefficients = clipped * scale[:, None, None]
            streams = tuple(self._stream(member) for member in replies)
        lr = settings.client_rate(round, self.config.rounds)
        if guide is None:  # all that probes tell is off the guide that the round lacks
            coefficients *= settings.guide_rest
        try:
            entry = Entry(
                round=round,
                lr=lr,
                streams=streams,
                steps=settings.minibatches,
                probes=drawn,
                coefficients=coefficients.astype(np.float32),
            )
            if guide is not None:  # of which one probe a mini-batch told, not P
                told = float(self.aggregator.scalars(along, scale * settings.probes).sum())
                given = (guide, told, settings.guide_rest)
                entry = guided_entry(self.mirror, entry, coefficients, *given)
            self.mirror.update(entry)
        except JournalError as error:
            exchange.tally.note(str(error))
        rms = {"scalar_rms": scalars[..., :drawn], "guide_rms": scalars[..., drawn:]}
        told_of = {
            name: float(np.sqrt(np.mean(part**2))) for name, part in rms.items() if part.size
        }
        return {"client_lr": lr, **told_of}
