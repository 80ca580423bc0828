"""Who takes part: nodes, the shares of the data they hold, and the cohort of each round.

A node says which share it holds and how many samples are in it.  What it says may be wrong, or a
lie: a node that cannot be used is left out by name, and a run goes on as long as one can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from flwr.serverapp import Grid

from sfl_flower.config import RunConfig, Settings
from sfl_flower.data import generator, server_seed
from sfl_flower.errors import ConfigError, DataError, TrainingError, printable
from sfl_flower.server.nopeek import without_nopeek
from sfl_flower.server.same_data import SameData
from sfl_flower.task import SplitTask
from sfl_flower.wire import JoinReply

__all__ = ["Ask", "Member", "Notes", "Roster", "draw_cohort"]

POLL_SECONDS = 0.05


@dataclass(frozen=True, order=True)
class Member:
    """A client: its share of the data, Flower's node id, and its number of samples."""

    partition: int
    node_id: int
    samples: int = 0


def draw_cohort(seed: int, round: int, count: int, size: int) -> list[int]:
    """Return which of `count` clients take part in a round, ascending; all if `size` is more."""
    if size >= count:
        return list(range(count))
    chosen = generator("cohort", server_seed(seed), round).choice(count, size, replace=False)
    return sorted(chosen.tolist())


Ask = Callable[[Iterable[Member]], Mapping[Member, JoinReply]]
"""Asks nodes who they are; gives the replies of those that answered."""


class Notes(Protocol):
    """Where a round keeps what a person should know."""

    def note(self, text: str) -> None:
        """Remember a sentence."""

    def leave_out(self, node: int, why: str) -> None:
        """Count a node that cannot take part, and remember why."""


class Roster:
    """The clients of a run, known by their share of the data.

    Parameters
    ----------
    config : RunConfig
        How many nodes to wait for before the first round and how long, how the data is divided,
        and, with the round, which clients take part.
    settings : Settings
        Settings of the method, which a client's samples must allow.
    task : SplitTask, optional
        The learning problem, for what nodes say of their training sets; see `SameData`.

    Attributes
    ----------
    here : list of Member
        The members that were online at the last `refresh`, by partition.
    """

    def __init__(
        self, config: RunConfig, settings: Settings, task: SplitTask | None = None
    ) -> None:
        self._config = config
        self._settings = settings
        self._divided = config.partition_spec() is not None
        self._data = SameData(self._divided, task)
        self._members: dict[int, Member] = {}
        # Which node keeps it out by being online: the one that holds its share, or itself.
        self._refused: dict[int, int] = {}
        self._silent: dict[int, int] = {}
        self._asked = 0
        self.here: list[Member] = []

    def refresh(self, grid: Grid, ask: Ask, notes: Notes) -> list[Member]:
        """Return the members that are online, by partition; new nodes are asked who they are.

        Parameters
        ----------
        grid : Grid
            Knows the nodes that are online.
        ask : callable
            Asks nodes who they are.
        notes : Notes
            Hears of nodes that are left out.

        Raises
        ------
        TrainingError
            If not enough nodes come within the deadline, or none of them answers.
        DataError
            If none of them can be used.
        ConfigError
            If nodes with data of their own cannot have any; see `SameData.hear`.
        """
        self._asked += 1
        online = self._wait(grid)
        if strangers := self._strangers(online):
            answers = ask([Member(node, node) for node in strangers])
            self._wait_longer(set(strangers) - {member.node_id for member in answers})
            usable = [reply for reply in answers.values() if not self._problem(reply)]
            if alike := self._data.hear(usable, first=not self._members):
                notes.note(alike)
            reasons = self._admit(answers, online, ask, notes)
            if not self._members:
                none = f"None of the {len(strangers)} nodes"
                if reasons:
                    first = next(iter(reasons.values()))
                    raise DataError(f"{none} can take part; the first reason: {first}")
                raise TrainingError(
                    f"{none} answered when asked for its data; see the clients' logs for the "
                    "reason."
                )
            for node, why in reasons.items():
                notes.leave_out(node, why)
        self.here = here = sorted(
            (self._members[node] for node in online & self._members.keys()),
            key=attrgetter("partition"),  # one member each; comparing members takes far longer
        )
        if len(here) < self._config.cohort:
            notes.note(
                f"{len(here)} of {self._config.clients} clients are online, fewer than the "
                f"{self._config.cohort} asked for in a round."
            )
        return here

    def _wait(self, grid: Grid) -> set[int]:
        """Return the nodes that are online, once there are enough to go on with."""
        end = time.monotonic() + self._config.join_timeout
        while True:
            online = set(grid.get_node_ids())
            # A node that goes and comes back is asked anew: it may have been set right.
            self._refused = {node: by for node, by in self._refused.items() if {node, by} <= online}
            here = len(online)
            if self._members:
                here, wanted = len(online & self._members.keys()) + len(self._strangers(online)), 1
            else:
                wanted = self._config.clients
            if here >= wanted:
                return online
            if time.monotonic() > end:
                raise TrainingError(
                    f"{here} of {wanted} clients are online after {self._config.join_timeout:g} s; "
                    "start the others, set clients lower, or set join-timeout higher."
                )
            time.sleep(POLL_SECONDS)

    def _strangers(self, online: set[int]) -> list[int]:
        return [
            node
            for node in sorted(online - self._members.keys() - self._refused.keys())
            if self._asked > self._silent.get(node, 0)
        ]

    def _admit(
        self, answers: Mapping[Member, JoinReply], online: set[int], ask: Ask, notes: Notes
    ) -> dict[int, str]:
        """Take in the nodes that can be used; return why the others cannot."""
        reasons: dict[int, str] = {}
        new: dict[int, Member] = {}
        for stranger, reply in answers.items():
            other = new.get(reply.partition)
            problem = self._problem(reply) or self._data.problem(reply)
            if other is not None and not problem:
                problem = (
                    f"it says that it holds partition {reply.partition}, as node {other.node_id} "
                    "does; give each node a partition-id of its own."
                )
            if problem:
                reasons[stranger.node_id] = problem
                self._refused[stranger.node_id] = (other or stranger).node_id
            else:
                new[reply.partition] = Member(reply.partition, stranger.node_id, reply.samples)
                if why := without_nopeek(self._settings, reply.samples):
                    notes.note(f"Client {reply.partition}: {why}")
        return reasons | self._settle(new, online, ask, notes)

    def _settle(
        self, new: Mapping[int, Member], online: set[int], ask: Ask, notes: Notes
    ) -> dict[int, str]:
        """Take new nodes in; one that claims a share whose owner answers is left out.

        A node that was started again has another id, and Flower believes for up to a minute that
        the old one is online too. A second node with its partition-id looks the same. Whether the
        old one answers tells them apart.
        """
        owners = {member.partition: member for member in self._members.values()}
        doubted = [owners[p] for p in new if p in owners and owners[p].node_id in online]
        living = ask(doubted) if doubted else {}
        reasons: dict[int, str] = {}
        for partition, member in new.items():
            owner = owners.get(partition)
            if owner is not None and owner in living:
                self._refused[member.node_id] = owner.node_id
                reasons[member.node_id] = (
                    f"partition {partition} is held by node {owner.node_id}, which answers; give "
                    "each node a partition-id of its own."
                )
                continue
            if owner is not None:
                del self._members[owner.node_id]
                self._refused[owner.node_id] = owner.node_id
                if owner in doubted:
                    notes.note(
                        f"Node {member.node_id} takes the place of node {owner.node_id}, which "
                        f"does not answer, as client {partition}."
                    )
            self._members[member.node_id] = member
        return reasons

    def _problem(self, reply: JoinReply) -> str:
        """Return why a node that says this cannot be used, empty where it can."""
        if reply.problem:
            return printable(reply.problem)
        if self._divided and not 0 <= reply.partition < self._config.clients:
            return (
                f"it has partition-id {reply.partition}; the run has partitions 0 to "
                f"{self._config.clients - 1}. Give it another partition-id, or set clients higher."
            )
        if reply.samples < 1:
            return f"it says that it holds {reply.samples} samples; a client needs at least 1."
        try:
            self._settings.check_held(reply.samples, self._config.batch_size)
        except ConfigError as error:
            return f"it holds {reply.samples} samples, too few for the method's settings: {error}"
        return ""

    def _wait_longer(self, silent: Iterable[int]) -> None:
        """Ask nodes that did not answer again, after 1, 2, 4, ... rounds.

        Each unanswered question costs a round the whole timeout.
        """
        for node in silent:
            self._silent[node] = 2 * self._asked - 1

    def cohort(self, round: int, online: list[Member]) -> list[Member]:
        """Return the clients of a round: a pure function of the seed, the round and who is online.

        Parameters
        ----------
        round : int
            The round.
        online : list of Member
            Sorted members that are online; all take part if they are fewer than asked for.
        """
        chosen = draw_cohort(self._config.seed, round, len(online), self._config.cohort)
        return [online[index] for index in chosen]

    @property
    def data(self) -> str:
        """Digest of the training set that the nodes divide, empty while it is not known."""
        return self._data.digest

    def go_on(self, data: str) -> None:
        """Expect the nodes of a resumed run to divide the training set with this digest."""
        self._data.digest = data

    @property
    def samples(self) -> int:
        """Training samples that the members say they hold."""
        return sum(member.samples for member in self._members.values())
