"""Walks of clients that send scalars: where they led, and as all other clients follow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError, JournalError, WireError
from sfl_flower.options import Choice, Form
from sfl_flower.server.aggregate import client_weight, find_aggregator
from sfl_flower.server.downlink import AUTO
from sfl_flower.server.following import FollowingSettings
from sfl_flower.server.roster import Member
from sfl_flower.wire.downlink import SCALARS, WEIGHTS
from sfl_flower.wire.heron import UPLINKS
from sfl_flower.wire.local import LocalReply
from sfl_flower.zo import Guide, ParameterVector, client_stream, run_key
from sfl_flower.zo.walks import LocalWalk, RoundOfWalks, Walking

__all__ = ["LocalWalks", "WalkSettings", "check_walks_down"]


@dataclass(frozen=True)
class WalkSettings(FollowingSettings):
    """What goes up and comes down of walks.

    Attributes
    ----------
    uplink : {"scalars", "weights"}
        What a client sends of its steps: h x P scalars, from which the server rebuilds its
        weights, or the weights (the paper). Both give the same bits.
    downlink : str
        How the client half comes down: its weights (the paper); the scalars of the walks whose mean
        it is, to the same bits, where they are fewer bytes ("auto": and following them is little
        work besides); or the differences since what a client holds, in an encoding.
    head_trainer : {"server", "client"}
        Who trains the head: the server, by backprop on the uploaded smashed data, so that clients
        move their half alone, or the client, by zeroth order jointly with its half (the paper).
    """

    uplink: Annotated[str, Choice(UPLINKS)] = "scalars"
    downlink: Annotated[str, Form("weights, scalars, auto, or an encoding such as int8")] = WEIGHTS
    head_trainer: Annotated[str, Choice(("client", "server"))] = "server"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.walks_down and self.uplink != "scalars":
            raise ConfigError(
                f"downlink={self.downlink} with uplink={self.uplink}: the server has no scalars to "
                "send on; use uplink=scalars, or downlink=weights or an encoding."
            )
        if self.walks_down and self.head_trainer == "client" and self.head_downlink != WEIGHTS:
            raise ConfigError(
                f"head_downlink={self.head_downlink} with downlink={self.downlink} and "
                "head_trainer=client: the head comes with the walks; leave head_downlink out."
            )

    @property
    def more_ways(self) -> tuple[str, ...]:
        """What `downlink` may be beside weights and encodings."""
        return SCALARS, AUTO

    @property
    def walks_down(self) -> bool:
        """Whether the scalars of walks come down."""
        return self.downlink in self.more_ways

    @property
    def ways(self) -> dict[str, str]:
        """How each half comes down, as requests say it: a head that walks comes with the rest."""
        if not self.walks_down:
            return super().ways
        head = SCALARS if self.head_trainer == "client" else self.head_downlink
        return {"client": SCALARS, "head": head}


def check_walks_down(config: RunConfig, settings: WalkSettings) -> None:
    """Refuse walks whose mean is none.

    Raises
    ------
    ConfigError
        If clients are to follow walks, and the aggregator is no weighted sum.
    """
    if settings.walks_down and not find_aggregator(config.aggregator).linear:
        raise ConfigError(
            f"downlink={settings.downlink} with aggregator={config.aggregator}: clients follow "
            "walks to their mean; use aggregator=mean, or another downlink."
        )


class LocalWalks:
    """The walks of a run's clients.

    Parameters
    ----------
    vector : ParameterVector
        What walks; its anchor is where every walk of a round begins.
    walking : Walking
        How walks go.
    config : RunConfig
        The clients' keys, and what each counts in a mean.
    method : str
        The method, of whose directions the clients' keys are.
    """

    def __init__(
        self, vector: ParameterVector, walking: Walking, config: RunConfig, method: str
    ) -> None:
        self._vector, self._walking, self._config = vector, walking, config
        self._method = method

    def of(self, member: Member, reply: LocalReply) -> LocalWalk:
        """Return the walk that a reply with scalars tells of."""
        assert reply.scalars is not None and reply.taken is not None
        return LocalWalk(
            run_key(self._method, self._config.client_key(member.partition)),
            client_stream(member.partition),
            client_weight(self._config.mean, reply.samples),
            reply.scalars[reply.taken > 0],
            reply.taken,
        )

    def together(
        self, round: int, lr: float, used: Mapping[Member, LocalReply], guide: Guide | None
    ) -> RoundOfWalks:
        """Return the walks of a round, in the order of the mean, as all clients follow them."""
        return RoundOfWalks(round, lr, tuple(self.of(*each) for each in used.items()), guide)

    def end(
        self, round: int, lr: float, member: Member, reply: LocalReply, guide: Guide | None
    ) -> dict[str, Tensor]:
        """Return the parameters a client came to, from its scalars.

        Parameters
        ----------
        round : int
            The round.
        lr : float
            The learning rate of its steps.
        member, reply : Member, LocalReply
            The client, whose key its directions follow from, and what it sent.
        guide : Guide, optional
            The guide of the round.

        Returns
        -------
        dict[str, Tensor]
            By their names in the vector; the client's own bits.

        Raises
        ------
        WireError
            If they are not finite, or a scalar is beyond what a guide can be multiplied by.
        """
        start, walk = self._vector.anchor.cpu(), self.of(member, reply)
        try:
            return self._vector.named(self._walking.end(start, walk, round, lr, guide))
        except JournalError as error:
            raise WireError(str(error)) from error
