"""What happened to the messages of a round."""

from __future__ import annotations

from dataclasses import dataclass, field
from logging import WARNING, getLogger

from sfl_flower.errors import printable
from sfl_flower.server.roster import Member

__all__ = ["MOST_NOTES", "Tally"]

MOST_NOTES = 100
"""Notes of a round that are kept; the log has them all."""
REFUSED = "refused"
"""What a round's record calls answers that must not be used."""
_log = getLogger("flwr")


@dataclass
class Tally:
    """What happened to the messages of one round.

    Attributes
    ----------
    replies, failures, rejected : int
        Replies used, errors and missing replies, and replies refused by validation.
    notes : list of str
        What a person should know.
    refused : bool
        Whether the mean of the replies could not be used.
    early : bool
        Whether nothing could be learned of clients yet: the replies show that they are there.
    more : int
        What a person should know beyond that, and is in the log alone.
    marks : dict of str to set of int
        What was found of answers, and the partitions of the clients whose they are.
    """

    replies: int = 0
    failures: int = 0
    rejected: int = 0
    notes: list[str] = field(default_factory=list)
    refused: bool = False
    early: bool = False
    more: int = 0
    marks: dict[str, set[int]] = field(default_factory=dict)

    def mark(self, what: str, partition: int) -> None:
        """Remember something about a client's answer; it stands in the record of the round."""
        self.marks.setdefault(what, set()).add(partition)

    def note(self, text: str) -> None:
        """Remember a sentence about this round and log it; what clients say may be part of it."""
        text = printable(text)
        if len(self.notes) < MOST_NOTES:
            self.notes.append(text)
        else:
            self.more += 1
        _log.log(WARNING, "%s", text)

    def told(self) -> tuple[str, ...]:
        """Return the notes for the record, at most `MOST_NOTES` and one that counts the others."""
        rest = f"{self.more} more notes of this round are in the log alone."
        return (*self.notes, *([rest] if self.more else []))

    def fail(self, member: Member, why: str) -> None:
        """Count an error or a missing reply."""
        self.failures += 1
        self.note(f"Client {member.partition} is left out of this round: {why}")

    def refuse_mean(self, text: str) -> None:
        """Say that nothing was learned of this round's replies, and why."""
        self.refused = True
        self.note(text)

    @property
    def used(self) -> int:
        """Replies from which something was learned."""
        return 0 if self.refused else self.replies

    def reject(self, member: Member, why: object) -> None:
        """Count a reply that must not be used."""
        self.rejected += 1
        self.mark(REFUSED, member.partition)
        self.note(f"The reply of client {member.partition} is not used: {why}")

    def leave_out(self, node: int, why: str) -> None:
        """Count a node that cannot take part in this run."""
        self.rejected += 1
        self.note(f"Node {node} is left out: {why}")
