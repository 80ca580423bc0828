"""A client mod that loses replies at random, the same ones whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Message

from sfl_flower.data.seeding import generator

__all__ = ["LostReplies"]


@dataclass(frozen=True)
class LostReplies:
    """Loses each reply of a training round with a fixed probability.

    The server gets an error in its place, as from a client that broke off, and goes on as it does
    with any that does not answer.  Whether a reply is lost follows from seed, round, client and its
    number in the round, so every method loses the same first replies; joining is spared.

    Attributes
    ----------
    share : float
        Probability that a reply is lost, 0 to 1.
    seed : int
        The run's seed.
    """

    share: float
    seed: int

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Answer, or raise in place of an answer.

        Raises
        ------
        ConnectionError
            If the reply is one of those that are lost.
        """
        kind, _, action = message.metadata.message_type.partition(".")
        if kind == "train":
            config = message.content.config_records["config"]
            number = int(str(config.get("step", 0))) + action.endswith("_probe")
            if self.loses(
                int(str(config["round"])), int(context.node_config["partition-id"]), number
            ):
                raise ConnectionError("the reply is lost")  # nobody would see what it computes
        return call_next(message, context)

    def loses(self, round: int, client: int, number: int) -> bool:
        """Tell whether a reply is lost.

        Parameters
        ----------
        round, client : int
            Of which round and which partition.
        number : int
            0 for the first reply of the round, 1 for the next.
        """
        drawn = generator("lost reply", self.seed, round, client, number).random()
        return bool(drawn < self.share)
