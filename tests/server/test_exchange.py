"""What an exchange makes of replies that cannot be read."""

from __future__ import annotations

import pytest

from sfl_flower.errors import WireError
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.roster import Member
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
    exchange = Exchange(trial.grid, ledger, 60.0, set(), "frozen", str)
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
