"""MU-SplitFed (arXiv 2510.21155): zeroth order on both sides, τ server steps; a weak baseline.

Per round each client runs one mini-batch at θ_c, θ_c + μu and θ_c - μu and sends the three z. The
server, from θ_s, takes τ steps of zeroth-order SGD with central differences on the first, a fresh
direction each. At the θ_s that gives, it returns the scalar Δ = ℓ(z₊) - ℓ(z₋), and the client steps
``θ_c - lr · Δ/(2μ) · u``. Then ``θ + η_g · mean_m(θ_m - θ)`` for both halves.

Nothing in it sees a gradient, and the step is one direction: arXiv 2603.14773 reports 14.0 % on
CIFAR-10 for it, with a pre-trained ResNet-18, where chance is 10 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from logging import INFO, getLogger
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import Settings
from sfl_flower.errors import SflError, WireError
from sfl_flower.options import ClientMode, Range, Rate
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.forward_only import ForwardOnlyStrategy, ForwardOnlyTrainer
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.probing import DirectionSettings, ProbeLength, note_zeros
from sfl_flower.server.received import received_state
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SMASHED
from sfl_flower.server.tally import Tally
from sfl_flower.server.verdict import tell
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.modes import eval_mode
from sfl_flower.wire import pack_state
from sfl_flower.wire.mu_splitfed import (
    MUForwardReply,
    MUForwardRequest,
    MUStepReply,
    MUStepRequest,
)
from sfl_flower.zo import Key, client_stream, drawn_signs, run_key

__all__ = ["MUSplitFed", "MUSplitFedSettings"]

_log = getLogger("flwr")


@dataclass(frozen=True)
class MUSplitFedSettings(DirectionSettings):
    """Settings of MU-SplitFed, beside those of directions, which hold on both sides.

    It takes plain steps, so no optimiser of the run is used.

    Attributes
    ----------
    server_steps : int
        τ, steps of the server half per client and round.
    server_zo_lr : float
        Learning rate of the server half, in place of the run's server-lr.
    client_lr : float
        Learning rate of the client half.
    global_lr : float
        η_g, how far both halves go towards the mean over clients; 1 is all the way.
    client_mode : {"as_built", "eval"}
        Mode of the client half's modules: as the task built them, or eval.
    """

    server_steps: Annotated[int, Range(1, 10**6)] = 2
    mu: ProbeLength = 5e-3
    server_zo_lr: Rate = 0.01
    client_lr: Rate = 0.005
    global_lr: Rate = 0.3
    client_mode: ClientMode = "as_built"

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample."""
        return 3, 0


def moved(module: nn.Module, mean: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Return ``θ + rate · (mean - θ)`` for the trained parameters, the mean of the buffers."""
    found = dict(mean)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own, other = parameter.detach().double(), mean[name].to(parameter.device).double()
        # In this form a rate of 1 gives the mean to the bit.
        found[name] = ((1.0 - rate) * own + rate * other).to(parameter.dtype)
    return found


class MUSplitFed(ForwardOnlyStrategy):
    """Server side of MU-SplitFed; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "mu_splitfed"
    settings_type: ClassVar[type[Settings]] = MUSplitFedSettings
    facts: ClassVar[Facts] = Facts(
        "forwards on both sides, one direction a round",
        client="zeroth order",
        server="zeroth order",
        server_lr=False,
    )
    settings: MUSplitFedSettings

    def prepare(self) -> None:
        """Refuse halves that forwards alone cannot train."""
        with eval_mode(self.client_half) if self.settings.client_mode == "eval" else nullcontext():
            self.check()
        self._key = run_key("mu_splitfed server", self.config.seed)

    def summary(self) -> None:
        """Log what is trained and how, and what to expect of it."""
        super().summary()
        _log.log(INFO, "\t     A weak baseline: zeroth order on both sides, published near chance.")

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of MU-SplitFed."""
        exchange.push(dict.fromkeys(cohort, self._forward_request(round)))
        replies: dict[Member, MUForwardReply] = {}
        halves: dict[Member, ForwardOnlyTrainer] = {}
        losses: dict[Member, float] = {}
        scalars: dict[Member, float] = {}
        forwards = exchange.in_turn(cohort, MUForwardReply.from_reader, self._check_forwards)
        for member, reply in forwards:
            replies[member] = reply
            try:
                self.screening.check(SMASHED, member, reply.anchor)
                halves[member] = half = ForwardOnlyTrainer(self)
                losses[member], delta = self._steps(half, (round, member.partition, 0), reply)
            except SflError as error:
                exchange.tally.reject(member, error)
                continue
            scalars[member] = float(delta[0])
            if self.settings.walk:
                key = Key(round, stream=client_stream(member.partition))
                delta *= drawn_signs(self._key, [key])
            exchange.push({member: self._step_request(round, delta)})
        done = exchange.collect(MUStepReply.from_reader, self._check_weights)
        exchange.tally.replies = len(done)
        if not done:
            return Outcome([], 0, {})
        self.book_usage(usage for m in done for usage in (replies[m].usage, done[m].usage))
        samples = {member: int(replies[member].y.shape[0]) for member in done}
        with self.averaging(exchange):
            weights = [client_weight(self.config.mean, n) for n in samples.values()]
            self._move(done, halves, weights, exchange.tally)
        used = np.array([scalars[member] for member in done])
        note_zeros(exchange.tally, [used], self.settings.probing())
        return Outcome(
            [losses[member] for member in done],
            sum(samples.values()),
            {"scalar_rms": float(np.sqrt(np.mean(used**2)))},
            server_steps=self.settings.server_steps * len(done),
        )

    def _steps(
        self, half: ForwardOnlyTrainer, draw: tuple[int, int, int], reply: MUForwardReply
    ) -> tuple[float, np.ndarray]:
        """Take the τ steps; return the loss before them, and Δ after them, float32, shape [1]."""
        (round, partition, _), settings, vector = draw, self.settings, half.vector
        directions = vector.directions(self._key, settings.direction)
        first = 0.0
        for step in range(settings.server_steps):
            direction = directions.of(Key(round, step, client_stream(partition)))
            z = reply.anchor
            high, low = half.probe(direction, settings.mu, z, z, reply.y, draw)
            first = (high + low) / 2.0 if step == 0 else first
            rate = settings.server_zo_lr * (high - low) / (2.0 * settings.mu)
            direction.add_to(vector.anchor, vector.anchor, -rate)
        found = half.loss(reply.plus, reply.y, draw) - half.loss(reply.minus, reply.y, draw)
        with np.errstate(over="ignore"):
            delta = np.array([found]).astype(np.float32)
        if not (np.isfinite(delta).all() and torch.isfinite(vector.anchor).all()):
            raise WireError("its steps give numbers that are not finite; lower server-zo-lr.")
        return first, delta

    def _move(
        self,
        done: Mapping[Member, MUStepReply],
        halves: Mapping[Member, ForwardOnlyTrainer],
        weights: list[float],
        tally: Tally,
    ) -> None:
        """Move both halves by η_g towards the means over the clients that finished."""
        rate, own = self.settings.global_lr, travelling_state(self.client_half)
        clients = self.aggregator.states(
            (received_state(r.weights, own) for r in done.values()), weights
        )
        tell(tally, self.aggregator, [member.partition for member in done])
        servers = self.aggregator.states(
            (travelling_state(halves[m].module) for m in done), weights
        )
        pairs = ((self.client_half, clients), (self.server.module, servers))
        for module, mean in pairs:
            load_travelling(module, moved(module, mean, rate))

    def _forward_request(self, round: int) -> MUForwardRequest:
        return MUForwardRequest(
            round=round,
            batch_size=self.config.batch_size,
            setup=self.setup,
            probing=self.settings.probing(),
            weights=pack_state(travelling_state(self.client_half)),
            meter=self.metering(round),
        )

    def _step_request(self, round: int, delta: np.ndarray) -> MUStepRequest:
        return MUStepRequest(
            round=round,
            setup=self.setup,
            probing=self.settings.probing(),
            lr=self.settings.client_lr,
            scalar=delta,
            meter=self.metering(round),
        )

    def _check_forwards(self, reply: MUForwardReply) -> None:
        self.expect_z(reply.anchor)

    def _check_weights(self, reply: MUStepReply) -> None:
        received_state(reply.weights, travelling_state(self.client_half))
