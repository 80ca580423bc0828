"""Methods with a local loss whose clients may keep what they were sent, and get what changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from sfl_flower.errors import WireError
from sfl_flower.server.downlink import Downlink, DownlinkSettings, Plan
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.local_loss import Check, LocalLossSettings, LocalLossStrategy
from sfl_flower.server.roster import Member
from sfl_flower.split import own_init
from sfl_flower.wire import Reader, StaleReply, is_stale
from sfl_flower.wire.local import LocalReply, LocalRequest
from sfl_flower.wire.message import Reply

__all__ = ["FollowingSettings", "FollowingStrategy", "or_stale"]


R = TypeVar("R", bound=Reply)


def or_stale(
    kind: type[R], stale: type[StaleReply] = StaleReply
) -> Callable[[Reader], R | StaleReply]:
    """Return what reads a reply of a kind, or that its client stands elsewhere."""

    def read(reader: Reader) -> R | StaleReply:
        return (stale if is_stale(reader.content) else kind).from_reader(reader)

    return read


@dataclass(frozen=True)
class FollowingSettings(DownlinkSettings, LocalLossSettings):
    """Settings of methods with a local loss whose halves come down by changes or whole."""


class FollowingStrategy(LocalLossStrategy):
    """Base of CSE-FSL, HERON-SFL and FSL-SAGE: local steps from where `Downlink` brings clients."""

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

        def built() -> dict[str, nn.Module]:
            return {name: self.built_by_clients(name) for name in halves}

        self.downlink = Downlink(halves, ways, here, most, built)

    def built_by_clients(self, name: str) -> nn.Module:
        """Return "client" or "head" as a client builds it, before it is sent anything."""
        task, seed, kind = self.task, self.config.model_seed, self.settings.head
        if name == "client":
            return task.build(seed).client
        return task.build_head(seed, kind, own_init(kind))

    def plans(self, members: Iterable[Member]) -> dict[Member, Plan]:
        """Return what each of these clients is sent of client half and head."""
        settings, size = self.settings, self.config.batch_size
        return self.downlink.plans({m: settings.batches(m.samples, size) for m in members})

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
            return {
                member: self.local_request(
                    kind, round, member, plan.weights, plan.head_weights, **plan.told, **own
                )
                for member, plan in self.plans(members).items()
            }

        def checked(reply: LocalReply | StaleReply) -> None:
            if isinstance(reply, LocalReply):
                rules(reply)
            else:
                self.check_stands()

        def ask(members: Iterable[Member]) -> dict[Member, LocalReply | StaleReply]:
            return exchange.send(requests(members), or_stale(LocalReply), checked)

        return self.brought_up(cohort, ask(cohort), ask, exchange)

    def brought_up(
        self,
        cohort: Collection[Member],
        answers: Mapping[Member, R | StaleReply],
        ask: Callable[[Iterable[Member]], Mapping[Member, R | StaleReply]],
        exchange: Exchange,
    ) -> dict[Member, R]:
        """Return the replies; clients that do not hold what was meant are asked once more.

        Parameters
        ----------
        cohort : collection of Member
            Whom was asked.
        answers : Mapping[Member, Reply]
            What they answered, or where they stand.
        ask : callable
            Asks some of them again, and returns their answers.
        exchange : Exchange
            Counts those that cannot be brought up.

        Returns
        -------
        dict[Member, Reply]
            In the order of the cohort.
        """
        answers = dict(answers)
        stale = {m: reply for m, reply in answers.items() if isinstance(reply, StaleReply)}
        for member, reply in stale.items():
            self.lost(member, reply)
        if stale:
            for member in stale:
                del answers[member]
            answers |= ask(stale)
        found: dict[Member, R] = {}
        for member in cohort:
            answer = answers.get(member)
            if isinstance(answer, StaleReply):
                self.lost(member, None)
                exchange.tally.fail(member, "it cannot be brought to the current version.")
            elif answer is not None:
                found[member] = answer
        self.downlink.synced(found)
        return found

    def check_stands(self) -> None:
        """Refuse that a client stands elsewhere, where it was sent all weights."""
        if not self.downlink.follows:
            raise WireError("it says that it stands elsewhere, and all weights came with it.")

    def lost(self, member: Member, reply: StaleReply | None) -> None:
        """Note what a client says that it holds, None for nothing that is of use."""
        self.downlink.lost(member, reply or StaleReply(-1))
