"""HO-SFL: backprop on the server, projected probes on the clients, scalars in between.

Per round (arXiv 2603.14773, section 3): each of K clients sends smashed data z; the server takes
one step with the mean gradient and returns λ, the gradient of each client's own mean loss at z;
the client answers with ``v_p = <λ, f_c(x; θ_c + μ u_p) - z>`` for P directions; everyone applies
``g = 1/(P μ) Σ_p mean_m(v_{m,p}) u_p``.  Only scalars are aggregated, so its cost does not grow
with the model.

With ``pipeline`` a round takes one exchange in place of two (`sfl_flower.server.pipelined`).

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
from sfl_flower.server.mirror import SYNC_POLICIES, Mirror
from sfl_flower.server.nopeek import check_nopeek
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.pipelined import Learned, Probed
from sfl_flower.server.private import check_apart, check_private
from sfl_flower.server.probing import (
    Noise,
    Probes,
    check_dcor,
    check_estimator,
    check_scalars,
    check_stack,
    check_whole,
    note_zeros,
    round_noise,
)
from sfl_flower.server.recall import TemporalSettings
from sfl_flower.server.roster import Member
from sfl_flower.server.secure_settings import SecureSettings, check_secure
from sfl_flower.server.secured import SecuredStrategy
from sfl_flower.server.settings import ClientOptimizerSettings, Replayable
from sfl_flower.server.spending import Spending
from sfl_flower.server.turns import ServerPaceSettings
from sfl_flower.server.verdict import tell
from sfl_flower.split import check_zeroth_order
from sfl_flower.training.modes import eval_mode
from sfl_flower.wire.ho_sfl import ForwardReply, PipelinedReply, ProbeReply, ProbeRequest
from sfl_flower.zo import SHARED_STREAM, Entry, Guide, OptimizerSpec, client_stream, run_key

__all__ = ["HOSFL", "HOSFLSettings"]


@dataclass(frozen=True)
class HOSFLSettings(
    GuideSettings, TemporalSettings, SecureSettings, ServerPaceSettings, ClientOptimizerSettings
):
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
    pipeline : bool
        Whether a round is one exchange: the probes of the round before travel with this one's
        smashed data. Each update of the client half then comes a round later.
    """

    probes: Probes = 16
    minibatches: Minibatches = 1
    pipeline: bool = False
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


class HOSFL(SecuredStrategy):
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
    def cost(parts: Parts) -> ClientCost | None:
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
        """Refuse what `check_aggregator`, `check_whole` and `check_private` do, and the like."""
        assert isinstance(settings, HOSFLSettings)
        check_aggregator(config, own_directions=settings.directions == "own")
        check_guide(settings)
        check_whole(config, settings)
        check_private(config, settings)
        channels.check_channels(settings.scalars, vars(settings))
        check_secure(config, settings)

    def prepare(self) -> None:
        """Check the client half, and start the journal at its current weights.

        Raises
        ------
        CutError
            If something in the client half breaks zeroth-order training.
        """
        super().prepare()
        settings = self.settings
        with eval_mode(self.client_half) if settings.client_mode == "eval" else nullcontext():
            x, _ = self.examples(2)
            check_zeroth_order(self.client_half, statistics_ok=True, example=(x,))
            check_estimator(settings.probing(), self.client_half, lambda: self.client_half(x))
            check_stack(settings.probing(), self.client_half, self.client_half, x)
            apart = channels.told_apart(settings.scalars, self.client_half, x, self.config.seed)
            check_nopeek(self.config, settings, x)
            check_apart(settings, self.client_half, self.client_half, x, self.config.seed)
        self.minibatches = settings.minibatches
        self.spending = Spending(self.config, settings, self.facts)
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
        own = (self.config.seed, self.client_half, self.mirror.vector)
        self._maker = settings.guide_maker(self.task, *own)

    def noise(self) -> Noise:
        """Return d and the directions of a round, those of all clients where they are own."""
        settings = self.settings
        counts = settings.probes, settings.minibatches, self.config.cohort
        noise = round_noise(self.mirror.noise_size, *counts, settings.directions == "shared")
        apart = self.mirror.journal.header.apart
        return settings.beside_guide(channels.apart_noise(noise, self.client_half, apart))

    def method_tensors(self) -> dict[str, Tensor]:
        """Return journal, parameters, optimiser state and guide for a checkpoint."""
        guide = {} if self._maker is None else self._maker.tensors()
        return self.mirror.tensors() | guide | self.pipeline_tensors() | self.spending.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put journal, parameters, optimiser state and guide back."""
        self.mirror.load_tensors(tensors)
        if self._maker is not None:
            self._maker.load_tensors(tensors)
        self.load_pipeline_tensors(tensors)
        self.spending.load_tensors(tensors)

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of HO-SFL: an exchange of smashed data, then one of probes."""
        self.spending.begin(round, cohort, self._roster, self.account, exchange.tally)
        if self.settings.pipeline or self.settings.secure_sums:
            other = self.pipelined_round if self.settings.pipeline else self.secured_round
            return self.spending.closed(other(round, cohort, exchange))
        anchors = self.anchors(round, cohort, exchange, self.minibatches)
        learned = self.learn(round, anchors, exchange)
        answers = exchange.collect(ProbeReply.from_reader, self.check_scalars)
        self.book_usage(reply.usage for reply in answers.values())
        probed = self.told(learned.probed, answers, exchange)
        exchange.tally.replies = len(probed.scalars)
        return self.spending.closed(learned.outcome(self.update(probed, exchange) | probed.seen()))

    def learn(
        self, round: int, anchors: Mapping[Member, ForwardReply], exchange: Exchange
    ) -> Learned:
        """Train the server half on the smashed data of a round; return λ and the rest.

        In a plain run clients begin to probe as soon as their λ is there.
        """
        # Every batch is committed before the first probe; then clients probe while the server
        # still works on the others' batches.
        at_once = self._maker is None and not self.settings.pipeline
        losses: list[float] = []
        used: dict[Member, ForwardReply] = {}
        probed = Probed(round, {})
        for member, found in self.backwards(round, anchors, exchange):
            used[member] = anchors[member]
            probed.used[member.partition] = len(anchors[member].y)
            losses += [part.loss for part in found]
            lam = np.concatenate([part.lam for part in found])
            if not at_once:
                probed.lam[member.partition] = lam
            elif self.tells(member.partition):
                exchange.push({member: self.probe_request(probed, member.partition, lam, round)})
        self.move_statistics(used, exchange)
        if self.settings.server_steps == "round":
            total = sum(client_weight(self.config.mean, n) for n in probed.used.values())
            self.server.step(total * self.minibatches)
        if self._maker is not None:  # a guide is made of all of them
            probed = replace(probed, guide=self._guide(self._maker, probed, used))
            if not self.settings.pipeline:
                exchange.push(self.probe_requests(probed, used, round))
        return Learned(losses, probed, self.pass_again(round, used, exchange))

    def _guide(
        self, maker: GuideMaker, probed: Probed, used: Mapping[Member, ForwardReply]
    ) -> Guide | None:
        """Return the round's guide from the clients' smashed data and λ, None without any."""
        if not used:
            return None
        mean = self.config.mean
        held = {member: (reply.z, probed.lam[member.partition]) for member, reply in used.items()}
        weights = {m: client_weight(mean, probed.used[m.partition]) for m in used}
        return maker.towards(self._seen(maker, probed.round, held, weights))

    def _seen(
        self,
        maker: GuideMaker,
        round: int,
        held: Mapping[Member, tuple[np.ndarray, np.ndarray]],
        weights: Mapping[Member, float],
    ) -> Tensor:
        """Return the vector that a round's guide is made of, flat."""
        return maker.gradient(round, ((*held[m], weight) for m, weight in weights.items()))

    def probe_request(
        self, probed: Probed, partition: int, lam: np.ndarray, round: int
    ) -> ProbeRequest:
        """Return what asks a client, in some round, for its probes of this or an earlier one."""
        request = ProbeRequest(
            round=probed.round,
            batch_size=self.config.batch_size,
            minibatches=self.minibatches,
            setup=self.setup,
            lam=lam,
            stream=self._stream(partition),
            probing=self.spending.of(self._probing),
            meter=self.metering(round),
            guide=probed.guide,
            seal=self.settings.seal(self.config.seed, probed.round) or None,
        )
        return self.secured(request, partition)

    def _stream(self, partition: int) -> int:
        return SHARED_STREAM if self.settings.directions == "shared" else client_stream(partition)

    def check_scalars(self, reply: ProbeReply | PipelinedReply) -> None:
        """Refuse scalars that are not finite, or larger than `scalar_limit` allows."""
        check_dcor(reply.dcor, self._probing)
        check_scalars(reply.scalars, self._probing, self.settings.scalar_limit)

    def update(self, probed: Probed, exchange: Exchange) -> dict[str, float]:
        """Fold means, weights and 1/(P μ) into coefficients, and journal them."""
        told, guide, round = dict(sorted(probed.scalars.items())), probed.guide, probed.round
        if not told:
            return {}
        weights = np.array([client_weight(self.config.mean, probed.used[at]) for at in told])
        settings, probing = self.settings, self._probing
        scalars = np.stack(list(told.values())).astype(np.float64)
        shown = self.spending.shown(scalars)
        note_zeros(exchange.tally, shown, probing)
        own, shared = (settings.clip_norm, settings.scale, guide), settings.directions == "shared"
        clipped = channels.conditioned(scalars, probing, *own)
        if settings.walk:
            clipped *= channels.walk_signs(self.config.seed, round, clipped.shape, shared)
        drawn = clipped.shape[-1] - (guide is not None)
        along, clipped = clipped[..., drawn:], clipped[..., :drawn]
        scale = weights / (weights.sum() * settings.probes * settings.minibatches * probing.unit)
        if shared:
            coefficients = self.aggregator.scalars(clipped, scale)[None]
            streams: tuple[int, ...] = (SHARED_STREAM,)
        else:
            coefficients = self.aggregator.apart(clipped) * scale[:, None, None]
            streams = tuple(self._stream(partition) for partition in told)
        tell(exchange.tally, self.aggregator, list(told))
        coefficients = self.spending.noised(coefficients, scale, probing, round, told)
        lr = settings.client_rate(round, self.config.rounds)
        if guide is None:  # all that probes tell is off the guide that the round lacks
            coefficients *= settings.guide_rest
        try:
            head = (round, lr, streams, settings.minibatches, drawn)
            seal = settings.seal(self.config.seed, round)
            entry = Entry(*head, coefficients.astype(np.float32), seal=seal)
            if guide is not None:  # of which one probe a mini-batch told, not P
                slope = float(self.aggregator.scalars(along, scale * settings.probes).sum())
                given = (guide, slope, settings.guide_rest)
                entry = guided_entry(self.mirror, entry, coefficients, *given)
            self.mirror.update(entry)
        except JournalError as error:
            exchange.tally.note(str(error))
        return {"client_lr": lr, **channels.sizes(shown, drawn)}
