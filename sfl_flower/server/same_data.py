"""Whether nodes that divide one training set among them have loaded the same one.

Each node divides the set for itself, by the same rule. If one lists its files in another order, or
shuffles without a seed, its share overlaps the others' and, worse, the test set's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sfl_flower.data.identity import data_digest
from sfl_flower.errors import ConfigError, printable
from sfl_flower.task import NOT_THEIR_OWN, SplitTask
from sfl_flower.task.own_data import divided_set
from sfl_flower.wire import JoinReply

__all__ = ["SameData"]


class SameData:
    """What nodes say of the training set that they have loaded, before it is divided.

    Parameters
    ----------
    divided : bool
        Whether the nodes divide one set; if not, each has data of its own.
    task : SplitTask, optional
        The learning problem; tells whether `train` could tell nodes apart, and which set the server
        itself has loaded.

    Attributes
    ----------
    digest : str
        That of the run's training set, empty while it is not known.
    """

    def __init__(self, divided: bool, task: SplitTask | None = None) -> None:
        self._divided = divided
        self._task = task
        self.digest = ""

    def hear(self, replies: Iterable[JoinReply], first: bool = False) -> str:
        """Take the digest of the run's set, the first time: the server's, or what most nodes name.

        The server has a set of its own to hold them against in a simulation, and where it holds
        samples back; its test set was taken from the same rows.

        Parameters
        ----------
        replies : iterable of JoinReply
            Of nodes that could take part.
        first : bool
            Whether no node has joined before.

        Returns
        -------
        str
            What a person should know: that nodes with data of their own all hold the same.

        Raises
        ------
        ConfigError
            All of the first nodes hold the same, and `train` of the task cannot tell them apart.
        """
        if self._divided and not self.digest and self._task is not None:
            own = divided_set(self._task)
            self.digest = "" if own is None else data_digest(own)
        found = sorted((reply.partition, reply.data) for reply in replies if reply.data)
        counts = Counter(data for _, data in found)
        if not counts:
            return ""
        if self._divided:
            # Of equally many the one of the lowest partition.
            self.digest = self.digest or counts.most_common(1)[0][0]
        elif len(found) > 1 and len(counts) == 1:
            if first and self._task is not None and not self._task.own_data:
                raise ConfigError(NOT_THEIR_OWN.format(self._task.name))
            return (
                f"All {len(found)} nodes hold the same training set, each of them all of it. With "
                "partition=local a node's train() should load that node's own data: give it a "
                "parameter, and it gets Flower's Context; or divide the set, with partition=iid."
            )
        return ""

    def problem(self, reply: JoinReply) -> str:
        """Return why a node's training set is not that of the run, empty where it is."""
        if not self._divided or not reply.data or reply.data == self.digest:
            return ""
        own, others = (printable(digest[:8]) for digest in (reply.data, self.digest))
        return (
            f"client {reply.partition} has loaded another training set (digest {own}) than the "
            f"one that this run divides ({others}): its labels, their number or their order "
            "differ. train() must return the same on every node: seed what it draws and sort what "
            "it lists; or set partition=local for nodes with data of their own."
        )
