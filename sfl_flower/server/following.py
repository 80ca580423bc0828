"""Methods with a local loss whose clients may keep what they were sent, and get what changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfl_flower.errors import WireError
from sfl_flower.server.downlink import Downlink, DownlinkSettings
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.local_loss import Check, LocalLossSettings, LocalLossStrategy
from sfl_flower.server.roster import Member
from sfl_flower.split import own_init
from sfl_flower.wire import Reader, StaleReply, is_stale
from sfl_flower.wire.local import LocalReply, LocalRequest

__all__ = ["FollowingSettings", "FollowingStrategy"]


@dataclass(frozen=True)
class FollowingSettings(DownlinkSettings, LocalLossSettings):
    """Settings of methods with a local loss whose halves come down by changes or whole."""


class FollowingStrategy(LocalLossStrategy):
    """Base of CSE-FSL and HERON-SFL: local steps from what `Downlink` brings clients to."""

    settings: FollowingSettings

    @property
    def trained_here(self) -> Collection[str]:
        """Which of "client" and "head" the server trains itself."""
        return ()

    def prepare(self) -> None:
        """Build the auxiliary head, and begin to follow what clients hold."""
        super().prepare()
        halves = {"client": self.client_half, "head": self.head}
        settings = self.settings
        most = self.config.batch_size if settings.bounded else 0
        ways, here = settings.ways, self.trained_here
        self.downlink = Downlink(halves, ways, here, most, self._built_by_clients)

    def _built_by_clients(self) -> dict[str, nn.Module]:
        """Return both halves as a client builds them, before it is sent anything."""
        task, seed, kind = self.task, self.config.model_seed, self.settings.head
        head = task.build_head(seed, kind, own_init(kind))
        return {"client": task.build(seed).client, "head": head}

    def method_tensors(self) -> dict[str, Tensor]:
        """Return client half, head and what clients hold of them, for a checkpoint."""
        return super().method_tensors() | self.downlink.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put client half, head and what clients hold of them back."""
        super().load_method_tensors(tensors)
        self.downlink.load_tensors(tensors)

    def ask_in_step(
        self,
        kind: type[LocalRequest],
        round: int,
        cohort: Collection[Member],
        exchange: Exchange,
        check: Check,
        **own: Any,
    ) -> dict[Member, LocalReply]:
        """Ask clients for local steps; those that do not hold what was meant are asked once more.

        Parameters
        ----------
        kind : type
            The method's request.
        round : int
            The round.
        cohort : collection of Member
            Whom to ask.
        exchange : Exchange
            Carries the messages.
        check : callable
            What the method asks of a reply beyond smashed data and labels that can be used.
        **own
            What the method's request has beyond the fields of `LocalRequest`.

        Returns
        -------
        dict[Member, LocalReply]
            Valid replies in the order of the cohort.
        """
        rules = self.rules(check)

        def requests(members: Iterable[Member]) -> dict[Member, LocalRequest]:
            settings, size = self.settings, self.config.batch_size
            plans = self.downlink.plans({m: settings.batches(m.samples, size) for m in members})
            return {
                member: self.local_request(
                    kind, round, member, plan.weights, plan.head_weights, **plan.told, **own
                )
                for member, plan in plans.items()
            }

        def read(reader: Reader) -> LocalReply | StaleReply:
            return (StaleReply if is_stale(reader.content) else LocalReply).from_reader(reader)

        def checked(reply: LocalReply | StaleReply) -> None:
            if isinstance(reply, LocalReply):
                rules(reply)
            elif not self.downlink.follows:
                raise WireError("it says that it stands elsewhere, and all weights came with it.")

        answers = exchange.send(requests(cohort), read, checked)
        stale = {m: reply for m, reply in answers.items() if isinstance(reply, StaleReply)}
        for member, reply in stale.items():
            self.downlink.lost(member, reply)
        if stale:
            answers |= exchange.send(requests(stale), read, checked)
        found: dict[Member, LocalReply] = {}
        for member in cohort:
            answer = answers.get(member)
            if isinstance(answer, StaleReply):
                self.downlink.lost(member, StaleReply(round))
                exchange.tally.fail(member, "it cannot be brought to the current version.")
            elif answer is not None:
                found[member] = answer
        self.downlink.synced(found)
        return found
