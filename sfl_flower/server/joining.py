"""Asking nodes who they are, and, where directions are to be theirs, what enters their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.data import subspace_draw
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.server.account import Account
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.frozen_parameters import Held
from sfl_flower.server.roster import Member
from sfl_flower.server.tensors import named, under
from sfl_flower.split import carried_state, load_carried, set_directions, sketched_moments
from sfl_flower.training.modes import torch_threads
from sfl_flower.wire import JoinReply, JoinRequest, Setup
from sfl_flower.wire.weights import Carried

__all__ = ["Joining"]

_CARRIED = "carried."


class Joining:
    """Asks nodes, and sets the directions of a client half by what those of the first round say.

    Parameters
    ----------
    setup : Setup
        What is said of the run.
    whole : bool
        Whether clients hold the whole model.
    held : callable
        Gives what clients hold; asked once, when it is first needed.
    opened : nn.Module, optional
        The server's client half, where its directions are to be of clients' inputs.
    begin : callable
        Begins anew what follows from the client half, such as a journal: it has other directions.

    Attributes
    ----------
    secure : bool
        Whether nodes are asked for public keys.
    keys : dict of bytes
        Their public keys, by node, as they came.
    """

    def __init__(
        self,
        setup: Setup,
        whole: bool,
        held: Callable[[], Held],
        opened: nn.Module | None,
        begin: Callable[[], None],
    ) -> None:
        self._begin = begin
        self._setup, self._whole, self._held, self._opened = setup, whole, held, opened
        self._base: tuple[str, str] | None = None
        self._moments: dict[int, np.ndarray] = {}
        self._told: Setup | None = None
        self.secure = False
        self.keys: dict[int, bytes] = {}

    def ask(
        self, nodes: Iterable[Member], exchange: Exchange, account: Account
    ) -> dict[Member, JoinReply]:
        """Ask nodes who they are; return the replies of those that answered."""
        if self._base is None:
            held = self._held()
            self._base = held.digest, held.head
        base, head = self._base
        wanted = self._opened is not None
        request = JoinRequest(self._setup, base or None, self._whole, head, wanted, self.secure)
        with account.joining():
            replies = exchange.send(dict.fromkeys(nodes, request), JoinReply.from_reader)
        for member, reply in replies.items():
            if reply.key is not None:
                self.keys.pop(member.node_id, None)  # it is then the last to have a key
                self.keys[member.node_id] = reply.key
        if wanted:
            self._moments |= {
                member.node_id: reply.moments
                for member, reply in replies.items()
                if reply.moments is not None and np.isfinite(reply.moments).all()
            }
        return replies

    def tensors(self) -> dict[str, Tensor]:
        """Return the directions for a checkpoint: machines need not compute them to one bit."""
        return named(_CARRIED, carried_state(self._held().modules[0]))

    def go_on(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the directions of a checkpoint in place.

        Raises
        ------
        TrainingError
            It lacks them, or has those of another model.
        """
        client = self._held().modules[0]
        load_carried(client, under(_CARRIED, tensors))
        self._opened = None
        if carried_state(client):
            self._begin()

    def settle(self, members: Iterable[Member]) -> Setup:
        """Return what requests say from now on, the directions with it.

        Where clients are to say what those are, they are set here, the first time, by the mean of
        what these members said.

        Raises
        ------
        TrainingError
            They said nothing that can be used.
        """
        if self._opened is not None:
            self._set(self._opened, members)
            self._begin()
            self._opened = None
            self._moments.clear()
        if self._told is None:
            carried = Carried.of(carried_state(self._held().modules[0]))
            self._told = replace(self._setup, carried=carried)
        return self._told

    def _set(self, opened: nn.Module, members: Iterable[Member]) -> None:
        known = [self._moments[m.node_id] for m in sorted(members) if m.node_id in self._moments]
        draw = subspace_draw(self._setup.model_seed)
        try:
            if not known or len({value.shape for value in known}) > 1:
                raise ConfigError("Clients did not send moments of one size.")
            mean = torch.from_numpy(np.mean(known, axis=0, dtype=np.float64))
            with torch_threads(1):
                set_directions(opened, sketched_moments(opened, mean, draw))
        except ConfigError as error:
            raise TrainingError(
                f"The directions of subspace_from=clients cannot be had: {error} Take those of "
                "public samples (subspace_from=public) or of noise."
            ) from error
