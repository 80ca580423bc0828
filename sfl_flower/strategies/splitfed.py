"""SplitFed V1 and V2 (arXiv 2004.12088): first order on both sides of the cut.

Per local step a client sends smashed data and receives λ, backpropagates it and steps.  V1 keeps a
copy of the server half per client and averages the copies at the end of the round; V2 has one
server half, stepped after every batch, clients in random order.  λ is taken before that step.
Client halves are averaged at the end of the round in both.

Clients run step by step together: the server sees step 0 of every client, then step 1.  λ of a
step rides on the request for the next, so a round of h local steps is h + 1 exchanges.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from sfl_flower.config import Settings, check_choice, check_range
from sfl_flower.data import generator
from sfl_flower.errors import CutError, WireError
from sfl_flower.optim import FIRST_ORDER
from sfl_flower.strategies.base import Outcome, SplitStrategy
from sfl_flower.strategies.exchange import Exchange
from sfl_flower.strategies.hybrid import client_weight
from sfl_flower.strategies.roster import Member
from sfl_flower.strategies.server_half import ServerHalf
from sfl_flower.wire import StepReply, StepRequest, pack_state, unpack_state

__all__ = ["SplitFedSettings", "SplitFedV1", "SplitFedV2", "mean_state"]


@dataclass(frozen=True)
class SplitFedSettings(Settings):
    """Settings of SplitFed V1 and V2.

    Attributes
    ----------
    local_steps : int
        h, mini-batches per client and round.
    client_optimizer : {"sgd", "adam", "adamw"}
        Optimiser of the client half.
    client_lr, client_momentum, client_weight_decay : float
        Its settings; momentum is for SGD.
    client_state : {"fresh", "kept"}
        Whether the client optimiser's state starts anew each round or stays on each client.
    """

    local_steps: int = 1
    client_optimizer: str = "sgd"
    client_lr: float = 0.05
    client_momentum: float = 0.9
    client_weight_decay: float = 0.0
    client_state: str = "fresh"

    def __post_init__(self) -> None:
        check_range("local_steps", self.local_steps, 1, 10**6)
        check_range("client_lr", self.client_lr, 0)
        check_range("client_momentum", self.client_momentum, 0, 0.9999)
        check_range("client_weight_decay", self.client_weight_decay, 0)
        check_choice("client_optimizer", self.client_optimizer, FIRST_ORDER)
        check_choice("client_state", self.client_state, ("fresh", "kept"))

    def optimizer(self) -> str:
        """Return the client optimiser as the text that travels."""
        return json.dumps(
            {
                "name": self.client_optimizer,
                "lr": self.client_lr,
                "momentum": self.client_momentum,
                "weight_decay": self.client_weight_decay,
            },
            sort_keys=True,
        )


def mean_state(states: Iterable[Mapping[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Return the weighted mean of state dicts, summed in float64 in the order given.

    Parameters
    ----------
    states : iterable of state dicts
        Equal names and shapes.
    weights : list of float
        One per state; divided by their sum.

    Returns
    -------
    dict[str, Tensor]
        Own dtypes; whole numbers (batch counters) are rounded.
    """
    total = sum(weights)
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for state, weight in zip(states, weights, strict=True):
        for name, value in state.items():
            dtypes[name] = value.dtype
            part = value.to(torch.float64) * (weight / total)
            sums[name] = part if name not in sums else sums[name] + part
    return {
        name: (value if dtypes[name].is_floating_point else value.round()).to(dtypes[name])
        for name, value in sums.items()
    }


class _SplitFed(SplitStrategy):
    settings_type: ClassVar[type[Settings]] = SplitFedSettings
    settings: SplitFedSettings

    def prepare(self) -> None:
        """Refuse a client half that has nothing to send.

        Raises
        ------
        CutError
            If it has no parameter.
        """
        if not any(True for _ in self.client_half.parameters()):
            raise CutError(
                f"The client half up to '{self.task.cut}' has no parameter, so SplitFed has "
                "nothing to train there; cut at a later layer."
            )

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of SplitFed: h steps on every client, then the means."""
        steps = self.settings.local_steps
        packed = pack_state(self.client_half.state_dict())
        active: dict[Member, np.ndarray | None] = dict.fromkeys(cohort)
        samples = dict.fromkeys(cohort, 0)
        losses: list[float] = []
        self.begin_round()
        for step in range(steps):
            replies = exchange.send(
                {m: self._request(round, step, packed, lam) for m, lam in active.items()},
                lambda content, step=step: self._read(round, step, content),  # type: ignore[misc]
            )
            active = {}
            for member in self.order(round, step, list(replies)):
                reply = replies[member]
                if reply.z is None or reply.y is None:
                    continue
                try:
                    draw = (round, member.partition, step)
                    found = self.half_of(member).gradients(reply.z, reply.y, draw)
                except WireError as error:
                    exchange.tally.reject(member, error)
                    continue
                self.half_of(member).add([found], 1.0)
                self.half_of(member).step()
                active[member] = found.lam
                samples[member] += reply.y.shape[0]
                losses.append(found.loss)
            active = {member: active[member] for member in sorted(active)}
        done = exchange.send(
            {m: self._request(round, steps, packed, lam) for m, lam in active.items()},
            lambda content: self._read(round, steps, content),
        )
        self._average(done, samples)
        exchange.tally.replies = len(done)
        return Outcome(losses, sum(samples.values()), {})

    def begin_round(self) -> None:
        """Set up the server halves of a round."""

    def half_of(self, member: Member) -> ServerHalf:
        """Return the server half that a client's batches train."""
        return self.server

    def order(self, round: int, step: int, members: list[Member]) -> list[Member]:
        """Return the order in which the server takes the batches of a step."""
        return members

    def end_round(self, members: list[Member], weights: list[float]) -> None:
        """Bring the server halves of a round together."""

    def _average(self, done: Mapping[Member, StepReply], samples: Mapping[Member, int]) -> None:
        own = self.client_half.state_dict()
        if not done:
            return
        weights = [client_weight(self.config.mean, samples[member]) for member in done]
        states = (unpack_state(reply.weights, own) for reply in done.values())
        self.client_half.load_state_dict(mean_state(states, weights))
        self.end_round(list(done), weights)
        peak = max(reply.peak_bytes for reply in done.values())
        self.ledger.client_peak_bytes = max(self.ledger.client_peak_bytes, peak)

    def _request(
        self, round: int, step: int, packed: Mapping[str, np.ndarray], lam: np.ndarray | None
    ) -> StepRequest:
        return StepRequest(
            round=round,
            step=step,
            steps=self.settings.local_steps,
            batch_size=self.config.batch_size,
            setup=self.setup,
            optimizer=self.settings.optimizer(),
            keep_state=self.settings.client_state == "kept",
            weights=packed if step == 0 else {},
            lam=lam,
            meter=round == self._first + 1,
        )

    def _read(self, round: int, step: int, content: RecordDict) -> StepReply:
        reply = StepReply.from_content(content)
        if (reply.round, reply.step) != (round, step):
            raise WireError(
                f"it answers step {reply.step} of round {reply.round}, asked was step {step} of "
                f"round {round}."
            )
        if (step == self.settings.local_steps) != bool(reply.weights):
            raise WireError("it brings weights before its last step, or none after it.")
        if reply.z is not None:
            self.expect_z(reply.z)
            if len(reply.z) > self.config.batch_size:
                raise WireError(
                    f"it has a mini-batch of {len(reply.z)} samples, asked were at most "
                    f"{self.config.batch_size}."
                )
        else:
            unpack_state(reply.weights, self.client_half.state_dict())
        return reply


class SplitFedV2(_SplitFed):
    """Server side of SplitFed V2: one server half; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "splitfed_v2"

    def order(self, round: int, step: int, members: list[Member]) -> list[Member]:
        """Return the clients in an order drawn from the run's seed."""
        drawn = generator("splitfed order", self.config.seed, round, step)
        return [members[index] for index in drawn.permutation(len(members)).tolist()]


class SplitFedV1(_SplitFed):
    """Server side of SplitFed V1: a server half per client; see the module.

    The copies' optimisers start anew each round.
    """

    name: ClassVar[str] = "splitfed_v1"

    def begin_round(self) -> None:
        """Forget the copies of the last round."""
        self._copies: dict[Member, ServerHalf] = {}

    def half_of(self, member: Member) -> ServerHalf:
        """Return the client's own copy of the server half."""
        if member not in self._copies:
            module: nn.Module = copy.deepcopy(self.server.module)
            self._copies[member] = ServerHalf(
                module, self.task.loss, self.task.classes, self.config
            )
        return self._copies[member]

    def end_round(self, members: list[Member], weights: list[float]) -> None:
        """Average the copies of the clients that finished."""
        states = (self._copies[member].module.state_dict() for member in members)
        self.server.module.load_state_dict(mean_state(states, weights))
