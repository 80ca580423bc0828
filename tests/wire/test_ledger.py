from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from sfl_flower.errors import WireError
from sfl_flower.wire import CATEGORIES, JoinReply, Ledger, content_bytes
from sfl_flower.wire.ho_sfl import ForwardReply
from tests.local_grid import changed, serde
from tests.wire.contents import MESSAGES, booked

pytestmark = pytest.mark.flower


def test_a_message_is_booked_by_category_and_the_rest_is_control() -> None:
    ledger = Ledger()
    ledger.record("up", {"smashed": 48, "labels": 32}, 100)
    ledger.record("down", {"gradients": 48}, 60)
    ledger.record("up", {"smashed": 2}, 2)
    assert {k: v for k, v in ledger.up.items() if v} == {"smashed": 50, "labels": 32, "control": 20}
    assert {k: v for k, v in ledger.down.items() if v} == {"gradients": 48, "control": 12}
    assert (ledger.bytes_up, ledger.bytes_down) == (102, 60)
    assert (ledger.exchanges, ledger.messages_up, ledger.messages_down) == (2, 2, 1)


def test_a_payload_beyond_its_message_is_refused_and_books_nothing() -> None:
    ledger = Ledger()
    with pytest.raises(WireError, match="10 bytes claims a payload of 11"):
        ledger.record("up", {"smashed": 11}, 10)
    assert ledger == Ledger()


def test_a_ledger_comes_back_from_plain_values() -> None:
    ledger = Ledger(samples=5, client_peak_bytes=7)
    ledger.record("up", {"scalars": 8, "keys": 4}, 30)
    ledger.record("down", {"weights": 8, "auxiliary": 4}, 12)
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    assert tuple(ledger.to_dict()["bytes"]) == CATEGORIES


@pytest.mark.parametrize("name", MESSAGES)
def test_payload_and_control_are_the_content(name: str) -> None:
    message = MESSAGES[name]
    total = content_bytes(message.to_content())
    ledger = Ledger()
    ledger.record("down", booked(message), total)
    assert ledger.bytes_down == total
    assert ledger.down["control"] >= 0
    assert total - ledger.down["control"] == sum(booked(message).values())


def test_content_bytes_by_hand() -> None:
    content = RecordDict(
        {
            "arrays": ArrayRecord({}),
            "config": ConfigRecord({"i": 1, "t": "ü", "b": False, "": "", "l": ["ab", "c"]}),
            "metrics": MetricRecord({"n": 1, "x": [0.5, 1.5]}),
        }
    )
    assert content_bytes(content) == (1 + 8) + (1 + 2) + (1 + 1) + 0 + (1 + 3) + (1 + 8) + (1 + 16)


def test_it_agrees_with_flowers_own_count() -> None:
    for message in MESSAGES.values():
        content = message.to_content()
        own = sum(record.count_bytes() for record in content.values())
        assert content_bytes(content) == own


def test_texts_that_flower_cannot_count_are_counted() -> None:
    whole = JoinReply(2, 0, "no data").to_content()
    content = changed(whole, config={"problem": ""})
    assert content_bytes(content) == content_bytes(whole) - len("no data")


ENVELOPE = 320
"""Most protobuf bytes of a message's records beyond `content_bytes`; see docs/ledger.md."""


def envelope(content: RecordDict) -> int:
    if serde is None:
        pytest.skip("this Flower keeps its encoding elsewhere")
    return int(serde.recorddict_to_proto(content).ByteSize()) - content_bytes(content)


@pytest.mark.parametrize("name", MESSAGES)
def test_content_bytes_are_flowers_encoding_up_to_an_envelope(name: str) -> None:
    assert 0 < envelope(MESSAGES[name].to_content()) <= ENVELOPE


def test_the_envelope_does_not_grow_with_the_payload() -> None:
    small, large = (
        ForwardReply(4, 3, z, np.zeros(n, np.int64), np.array([n], np.int64))
        for n, z in ((1, np.zeros((1, 8), np.float32)), (2000, np.zeros((2000, 256), np.float32)))
    )
    assert large.z.nbytes == 2_048_000
    # What grows is the varints that hold lengths and shapes.
    assert envelope(large.to_content()) - envelope(small.to_content()) <= 24
