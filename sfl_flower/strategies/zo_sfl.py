"""ZO-SFL: zeroth order on both sides of the cut, SplitFed V1's way; a weak baseline.

From the repository of HO-SFL (arXiv 2603.14773). Every client has a copy of each half. Per step
and probe both are moved by +μ and then by -μ, each along a direction of its own; the client sends
z both times, the server returns the loss difference Δ_p, and both sides step along
``g = 1/(2μP) Σ_p Δ_p u_p``. At the end of the round the copies of each half are averaged.

One scalar has to teach both halves, so its noise grows with the parameters of the whole model:
the same paper has it near chance where HO-SFL learns.

As in SplitFed the scalars of a step ride on the request for the next: h steps are h + 1 exchanges.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from logging import INFO, getLogger
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sfl_flower.config import Settings
from sfl_flower.errors import SflError, WireError
from sfl_flower.options import Decay, Momentum, Rate, Steps
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.forward_only import ForwardOnlyStrategy, ForwardOnlyTrainer
from sfl_flower.server.frozen_parameters import counts
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.probing import DirectionSettings, Noise, Probes, note_zeros
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.settings import LocalStepsSettings, Replayable
from sfl_flower.server.verdict import tell
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.modes import eval_mode
from sfl_flower.wire import Usage, pack_state
from sfl_flower.wire.zo_sfl import ZOStepReply, ZOStepRequest
from sfl_flower.zo import (
    Directions,
    OptimizerSpec,
    Probing,
    Walk,
    client_stream,
    drawn_signs,
    run_key,
    step_coefficients,
    step_keys,
)

__all__ = ["ZOSFL", "ZOSFLSettings"]

_log = getLogger("flwr")


@dataclass(frozen=True)
class ZOSFLSettings(DirectionSettings, LocalStepsSettings):
    """Settings of ZO-SFL, beside those of directions (on both sides) and of local steps.

    The server's optimiser is the run's.

    Attributes
    ----------
    local_steps : int
        h, mini-batches per client and round; 0 takes one pass over the client's samples.
    probes : int
        P, probes per mini-batch.
    client_optimizer : {"sgd", "momentum", "adam", "adamw", "radazo", "hiso"}
        Optimiser of the client half.
    client_state : {"fresh", "kept"}
        Whether the client optimiser's state starts anew each round or stays on each client; the
        server's optimisers always start anew.
    """

    local_steps: Steps = 0
    probes: Probes = 1
    client_optimizer: Replayable = "adamw"
    client_lr: Rate = 1e-3
    client_momentum: Momentum = 0.9
    client_weight_decay: Decay = 1e-4

    def probing(self) -> Probing:
        """Return how a mini-batch is probed."""
        return Probing(self.probes, self.direction, self.mu, "central")

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample."""
        return 2 * self.probes, 0


@dataclass
class _Pair:
    """What the server holds of a client within a round: a copy of its half, and counts."""

    half: ForwardOnlyTrainer
    directions: Directions
    walk: Walk
    steps: int
    samples: int = 0
    losses: list[float] = field(default_factory=list)
    scalars: list[np.ndarray] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    weights: dict[str, Tensor] | None = None


class ZOSFL(ForwardOnlyStrategy):
    """Server side of ZO-SFL; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "zo_sfl"
    settings_type: ClassVar[type[Settings]] = ZOSFLSettings
    facts: ClassVar[Facts] = Facts(
        "forwards on both sides", client="zeroth order", server="zeroth order"
    )
    settings: ZOSFLSettings

    def prepare(self) -> None:
        """Refuse halves that forwards alone cannot train."""
        with eval_mode(self.client_half) if self.settings.client_mode == "eval" else nullcontext():
            self.check()
        config = self.config
        self._key = run_key("zo_sfl server", config.seed)
        with_momentum = config.server_optimizer == "sgd" and config.server_momentum > 0
        self._optimizer = OptimizerSpec(
            "momentum" if with_momentum else config.server_optimizer,
            momentum=config.server_momentum,
            weight_decay=config.server_weight_decay,
        )

    def noise(self) -> Noise:
        """Return d and the directions of a step of all clients, whose copies are averaged.

        One scalar carries what the directions of both halves did, so both are in d.
        """
        halves = (self.client_half, self.server.module)
        size = sum(counts(module)[1] for module in halves)
        probes, clients = self.settings.probes, self.config.cohort
        return Noise(size, probes * clients, f"{probes} probes x {clients} clients")

    def summary(self) -> None:
        """Log what is trained and how, and what to expect of it."""
        super().summary()
        _log.log(INFO, "\t     A weak baseline: zeroth order on both sides, published near chance.")

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of ZO-SFL: h steps on every client, then the means."""
        packed = pack_state(travelling_state(self.client_half))
        pairs = {member: self._pair(member) for member in cohort}
        exchange.push({m: self._request(round, 0, pairs[m], weights=packed) for m in cohort})
        step, active = 0, cohort
        while active:
            asked, active = active, []
            replies = exchange.in_turn(asked, ZOStepReply.from_reader, self._check_step)
            for member, reply in replies:
                pair = pairs[member]
                pair.usages.append(reply.usage)
                if reply.z is None:
                    pair.weights = received_state(reply.weights, travelling_state(self.client_half))
                    continue
                try:
                    self.screening.check(SMASHED, member, reply.z)
                    scalars = self._step(pair, (round, member.partition, step), reply)
                except SflError as error:
                    exchange.tally.reject(member, error)
                    continue
                exchange.push({member: self._request(round, step + 1, pair, scalars=scalars)})
                active.append(member)
            step += 1
        return self._close({m: pair for m, pair in pairs.items() if pair.weights}, exchange)

    def _pair(self, member: Member) -> _Pair:
        half, config = ForwardOnlyTrainer(self), self.config
        directions = half.vector.directions(self._key, self.settings.direction)
        walk = Walk(half.vector.anchor, self._optimizer, directions)
        return _Pair(
            half, directions, walk, self.settings.batches(member.samples, config.batch_size)
        )

    def _step(self, pair: _Pair, draw: tuple[int, int, int], reply: ZOStepReply) -> np.ndarray:
        """Step the copy along Δ of every probe; return what the client steps by, float32, [P].

        The server half is no part of a walk: it steps by Δ all the same.
        """
        if reply.z is None or reply.y is None:
            raise WireError("it brings no smashed data.")
        (round, partition, step), settings = draw, self.settings
        keys = step_keys(round, step, client_stream(partition), settings.probes)
        parts, losses = np.split(reply.z, 2 * settings.probes), []
        for key, plus, minus in zip(keys, parts[::2], parts[1::2], strict=True):
            direction = pair.directions.of(key)
            losses.append(pair.half.probe(direction, settings.mu, plus, minus, reply.y, draw))
        deltas = np.array([high - low for high, low in losses])
        coefficients = step_coefficients(deltas, 2.0 * settings.mu)
        if not np.isfinite(coefficients).all():
            raise WireError("a loss difference gives a step that is not finite; lower the rates.")
        pair.walk.step(keys, coefficients, self.config.server_rate(round))
        if not torch.isfinite(pair.half.vector.anchor).all():
            raise WireError("its step gives numbers that are not finite; lower server-lr.")
        pair.samples += int(reply.y.shape[0])
        pair.losses.append(float(np.mean(losses)))
        pair.scalars.append(deltas.astype(np.float32))
        signs = drawn_signs(self._key, keys) if settings.walk else 1.0
        return pair.scalars[-1] * signs

    def _close(self, done: Mapping[Member, _Pair], exchange: Exchange) -> Outcome:
        """Average the copies of the clients that finished; nothing else of a round remains."""
        finished = list(done.values())
        exchange.tally.replies = len(finished)
        if not finished:
            return Outcome([], 0, {})
        for pair in finished:
            self.book_usage(pair.usages)
        weights = [client_weight(self.config.mean, pair.samples) for pair in finished]
        clients = (pair.weights for pair in finished if pair.weights)
        with self.averaging(exchange):
            load_travelling(self.client_half, self.aggregator.states(clients, weights))
            tell(exchange.tally, self.aggregator, [member.partition for member in done])
            servers = (travelling_state(pair.half.module) for pair in finished)
            load_travelling(self.server.module, self.aggregator.states(servers, weights))
        parts = (part for pair in finished for part in pair.scalars)
        note_zeros(exchange.tally, parts, self.settings.probing())
        scalars = np.concatenate([part for pair in finished for part in pair.scalars])
        return Outcome(
            [loss for pair in finished for loss in pair.losses],
            sum(pair.samples for pair in finished),
            {"scalar_rms": float(np.sqrt(np.mean(scalars.astype(np.float64) ** 2)))},
        )

    def _request(
        self,
        round: int,
        step: int,
        pair: _Pair,
        weights: Mapping[str, np.ndarray] | None = None,
        scalars: np.ndarray | None = None,
    ) -> ZOStepRequest:
        settings = self.settings
        return ZOStepRequest(
            round=round,
            step=step,
            steps=pair.steps,
            batch_size=self.config.batch_size,
            setup=self.setup,
            probing=settings.probing(),
            optimizer=settings.optimizer_text(round, self.config.rounds),
            keep_state=settings.client_state == "kept",
            weights=weights or {},
            scalars=scalars,
            meter=self.metering(round),
        )

    def _check_step(self, reply: ZOStepReply) -> None:
        if reply.z is None:
            received_state(reply.weights, travelling_state(self.client_half))
        else:
            self.expect_z(reply.z)
