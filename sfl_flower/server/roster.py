"""Who takes part: nodes, the shares of the data they hold, and the cohort of each round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from logging import getLogger

from flwr.serverapp import Grid

from sfl_flower.data import generator
from sfl_flower.errors import DataError, TrainingError

__all__ = ["Member", "Roster", "draw_cohort"]

POLL_SECONDS = 0.05

_log = getLogger("flwr")


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
    chosen = generator("cohort", seed, round).choice(count, size, replace=False)
    return sorted(chosen.tolist())


class Roster:
    """The clients of a run, known by their share of the data.

    Parameters
    ----------
    clients : int
        How many nodes to wait for before the first round.
    seed : int
        The run's seed; with the round it decides the cohort.
    deadline : float
        Seconds to wait for the nodes.
    """

    def __init__(self, clients: int, seed: int, deadline: float) -> None:
        self._clients = clients
        self._seed = seed
        self._deadline = deadline
        self._members: dict[int, Member] = {}
        self._refused: set[int] = set()
        self._silent: dict[int, int] = {}
        self._asked = 0

    def refresh(
        self,
        grid: Grid,
        ask: Callable[[Iterable[Member]], Mapping[Member, tuple[int, int, str]]],
    ) -> list[Member]:
        """Return the members that are online, by partition; new nodes are asked who they are.

        Parameters
        ----------
        grid : Grid
            Knows the nodes that are online.
        ask : callable
            Asks nodes; gives partition, samples and problem of those that answered.

        Raises
        ------
        TrainingError
            If not enough nodes come within the deadline.
        DataError
            If a node has no usable data before the first round; one that comes later is left out.
        """
        online = self._wait(grid)
        self._asked += 1
        strangers = [
            node
            for node in sorted(online - self._members.keys() - self._refused)
            if self._asked > self._silent.get(node, 0)
        ]
        if strangers:
            answers = ask([Member(node, node) for node in strangers])
            self._admit(answers)
            self._wait_longer(set(strangers) - {member.node_id for member in answers})
            if len(self._members) == 0:
                raise TrainingError(
                    f"None of the {len(strangers)} nodes answered when asked for its data; see the "
                    "clients' logs for the reason."
                )
        return sorted(self._members[node] for node in online & self._members.keys())

    def _wait(self, grid: Grid) -> set[int]:
        wanted = 1 if self._members else self._clients
        end = time.monotonic() + self._deadline
        while len(online := set(grid.get_node_ids())) < wanted:
            if time.monotonic() > end:
                raise TrainingError(
                    f"{len(online)} of {wanted} clients are online after {self._deadline:g} s; "
                    "start the others, set clients lower, or set join-timeout higher."
                )
            time.sleep(POLL_SECONDS)
        return online

    def _admit(self, answers: Mapping[Member, tuple[int, int, str]]) -> None:
        running = bool(self._members)
        held = {member.partition: member.node_id for member in self._members.values()}
        new: set[int] = set()
        for stranger, (partition, samples, problem) in answers.items():
            if partition in new:
                problem = (
                    f"Two nodes say they hold partition {partition}; give each node its own "
                    "partition-id in its node configuration."
                )
            if problem:
                self._refuse(stranger.node_id, problem, running)
                continue
            new.add(partition)
            # A node that was started again has another id, and Flower believes for up to a minute
            # that the old one is online too.
            if partition in held:
                self._refused.add(held[partition])
                del self._members[held[partition]]
            self._members[stranger.node_id] = Member(partition, stranger.node_id, samples)

    def _wait_longer(self, silent: Iterable[int]) -> None:
        """Ask nodes that did not answer again, after 1, 2, 4, ... rounds.

        Each unanswered question costs a round the whole timeout.
        """
        for node in silent:
            self._silent[node] = 2 * self._asked - 1

    def _refuse(self, node: int, problem: str, running: bool) -> None:
        """Stop a run that has not begun; leave a node that comes later out of one that has."""
        if not running:
            raise DataError(problem)
        self._refused.add(node)
        _log.warning("Node %d came late and is left out: %s", node, problem)

    def cohort(self, round: int, online: list[Member], size: int) -> list[Member]:
        """Return the clients of a round: a pure function of the seed, the round and who is online.

        Parameters
        ----------
        round : int
            The round.
        online : list of Member
            Sorted members that are online.
        size : int
            How many to take; all that are online if they are fewer.
        """
        return [online[index] for index in draw_cohort(self._seed, round, len(online), size)]

    @property
    def fewest(self) -> int:
        """Training samples of the member that holds the fewest, 0 without members."""
        return min((member.samples for member in self._members.values()), default=0)

    @property
    def samples(self) -> int:
        """Training samples that the members say they hold."""
        return sum(member.samples for member in self._members.values())
