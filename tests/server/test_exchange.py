"""What an exchange makes of replies that cannot be read."""

from __future__ import annotations

import pytest

from sfl_flower.errors import WireError
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.flight import MOST_LATE, keep_newest
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import MOST_NOTES, Tally
from sfl_flower.wire import JoinReply, JoinRequest, Ledger, Reader, content_bytes
from sfl_flower.wire.flower import SUPERLINK, identity
from tests import tiny

pytestmark = pytest.mark.flower


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WireError("it answers round 9."), "it answers round 9."),
        (KeyError("slot"), "it cannot be read (KeyError: 'slot')."),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "it cannot be read (UnicodeDecodeErr"),
        (ValueError("first line\nlast line"), "it cannot be read (ValueError: last line)."),
        (MemoryError(), "it cannot be read (MemoryError: no reason given)."),
    ],
)
def test_c1_whatever_reading_raises_refuses_that_reply_and_books_it(
    error: Exception, says: str
) -> None:
    trial = tiny.begin(tiny.task(), "frozen")
    ledger = Ledger()
    exchange = Exchange(trial.grid, ledger, 60.0, {}, "frozen", str)
    members = [Member(index, node) for index, node in enumerate(trial.grid.nodes)]
    request = JoinRequest(trial.strategy.setup)

    def read(reader: Reader) -> JoinReply:
        reply = JoinReply.from_reader(reader)
        if reply.partition == 1:
            raise error
        return reply

    with identity(1, SUPERLINK):
        found = exchange.send(dict.fromkeys(members, request), read)
    assert [member.partition for member in found] == [0, 2, 3]
    assert (exchange.tally.rejected, exchange.tally.failures) == (1, 0)
    (note,) = exchange.tally.notes
    assert note.startswith(f"The reply of client 1 is not used: {says}")
    assert ledger.messages_up == 4
    assert ledger.bytes_up == sum(content_bytes(content) for _, _, content in trial.grid.replies)


def test_notes_of_a_round_are_bounded_and_the_others_counted() -> None:
    tally = Tally()
    for number in range(MOST_NOTES + 7):
        tally.fail(Member(number, 1000 + number, 4), "it sleeps.")
    told = tally.told()
    assert (len(told), tally.failures) == (MOST_NOTES + 1, MOST_NOTES + 7)
    assert told[-1] == "7 more notes of this round are in the log alone."
    assert Tally().told() == ()


def test_of_replies_that_never_come_the_newest_are_waited_for() -> None:
    late = dict.fromkeys(str(number) for number in range(MOST_LATE + 3))
    keep_newest(late)
    assert len(late) == MOST_LATE
    assert (next(iter(late)), list(late)[-1]) == ("3", str(MOST_LATE + 2))
    keep_newest(few := {"a": None})
    assert few == {"a": None}
