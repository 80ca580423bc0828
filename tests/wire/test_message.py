"""A message is what its fields say: declared once, written, read and counted alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest

from sfl_flower.errors import WireError
from sfl_flower.wire import content_bytes
from sfl_flower.wire import message as declared
from sfl_flower.wire.draft import PROTOCOL
from sfl_flower.wire.fields import (
    HeadWeights,
    Samples,
    Smashed,
    Weights,
    array,
    flag,
    hexadecimal,
    number,
    octets,
    text,
    whole,
)
from sfl_flower.wire.message import Part, Reply, Request
from sfl_flower.wire.reader import Reader
from tests.local_grid import changed, roundtrip
from tests.wire.contents import booked

pytestmark = pytest.mark.flower


@dataclass(frozen=True)
class Place(Part):
    street_name: str
    map: Annotated[np.ndarray, array("int64", "labels", ndim=1)]


@dataclass(frozen=True)
class Order(Request):
    ACTION: ClassVar[str] = "order"

    round: int
    place: Place
    share: Annotated[float, number(0.0, 1.0)]
    seal: Annotated[str, hexadecimal()] = "0f"
    paid: bool = False
    note: Annotated[str, text(empty="none")] = ""
    kind: Annotated[str, text(("by post", "by hand")).called("sent")] = "by hand"
    stamps: Annotated[bytes, octets().when(lambda order: order["kind"] == "by post")] = b""
    insured: Annotated[bool, flag().when(lambda order: order["kind"] == "by post")] = False
    picture: Smashed | None = None
    second: Smashed | None = None
    head: HeadWeights = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)

    def check(self, reader: Reader) -> None:
        if self.paid and self.share == 0.0:
            raise reader.fail("is paid for without a share")


@dataclass(frozen=True)
class Receipt(Reply):
    WHAT: ClassVar[str] = "receipt"
    STATUS: ClassVar[str] = "done"

    samples: Samples


@dataclass(frozen=True)
class Nod(Reply):
    WHAT: ClassVar[str] = "nod"

    def examples(self) -> int:
        return 3


HERE = Place("Kay", np.arange(3))
SMALL = Order(4, HERE, 0.5)
LARGE = Order(
    4,
    HERE,
    1.0,
    paid=True,
    note="soon",
    kind="by post",
    stamps=b"ab",
    insured=True,
    picture=np.ones((2, 3), np.float32),
    second=np.ones((2, 5), np.float32),
    head={"float32": np.ones(2, np.float32)},
    weights={"int64": np.ones(1, np.int64)},
)


def test_each_field_travels_as_it_says() -> None:
    content = SMALL.to_content()
    assert dict(content["config"]) == {
        "protocol": PROTOCOL,
        "round": 4,
        "street-name": "Kay",
        "share": 0.5,
    }
    assert list(content["arrays"]) == ["map"]
    config = LARGE.to_content()["config"]
    assert (config["paid"], config["note"], config["sent"]) == (True, "soon", "by post")
    assert Order(4, HERE, 0.5, seal="a0ff").to_content()["config"]["seal"] == b"\xa0\xff"
    assert not content["metrics"]
    names = ["map", "stamps", "picture", "second", "head.float32", "weights.int64"]
    assert list(LARGE.to_content()["arrays"]) == names


def test_it_comes_back() -> None:
    back = Order.from_content(roundtrip(SMALL.to_content()))
    assert (back.place.street_name, back.place.map.tolist()) == ("Kay", [0, 1, 2])
    assert (back.note, back.stamps, back.picture, back.head) == ("", b"", None, {})
    back = Order.from_content(roundtrip(LARGE.to_content()))
    assert (back.stamps, back.insured, back.kind, back.seal) == (b"ab", True, "by post", "0f")
    assert back.second is not None
    assert back.second.shape == (2, 5)


def test_bytes_of_a_category_are_summed_over_fields_and_parts() -> None:
    assert booked(SMALL) == {"labels": 24}
    assert booked(LARGE) == {"labels": 24, "smashed": 64, "auxiliary": 8, "weights": 8}
    assert content_bytes(LARGE.to_content()) > sum(booked(LARGE).values())


@pytest.mark.parametrize(
    ("says", "change"),
    [
        (r"A .order. request message has share=2.0, expected a number", {"config": {"share": 2.0}}),
        ("lacks the setting 'street-name'", {"config": {"street-name": None}}),
        ("'map' of shape", {"arrays": {"map": np.zeros((1, 1), np.int64)}}),
        ("seal='../x', expected at most 64 bytes", {"config": {"seal": "../x"}}),
        ("seal=.*, expected at most 64 bytes", {"config": {"seal": b"x" * 65}}),
        ("expected one of by post, by hand", {"config": {"sent": "never"}}),
        ("unknown entries: stamps", {"arrays": {"stamps": np.zeros(1, np.uint8)}}),
        ("unknown entries: insured", {"config": {"insured": True}}),
        ("lacks the array 'stamps'", {"config": {"sent": "by post", "insured": True}}),
        ("lacks the array 'second'", {"config": {"second": 1}}),
    ],
)
def test_what_is_not_as_declared_is_refused(says: str, change: Any) -> None:
    with pytest.raises(WireError, match=says):
        Order.from_content(changed(SMALL.to_content(), **change))


def test_fields_that_do_not_fit_one_another_are_refused() -> None:
    with pytest.raises(WireError, match="is paid for without a share"):
        Order.from_content(Order(4, HERE, 0.0, paid=True).to_content())


def test_a_reply_brings_its_status_and_how_many_samples_it_stands_for() -> None:
    content = Receipt(5).to_content()
    assert (content["config"]["status"], dict(content["metrics"])) == ("done", {"num-examples": 5})
    assert dict(Nod().to_content()["metrics"]) == {"num-examples": 3}
    assert Receipt.from_content(content) == Receipt(5)
    with pytest.raises(WireError, match="A receipt message has status='ok', expected one of done"):
        Receipt.from_content(changed(content, config={"status": "ok"}))


def test_a_field_that_does_not_say_how_it_travels_is_an_error() -> None:
    @dataclass(frozen=True)
    class Vague(Request):
        ACTION: ClassVar[str] = "vague"

        share: float = 0.5

    @dataclass(frozen=True)
    class Torn(Request):
        ACTION: ClassVar[str] = "torn"

        share: int | str = 0

    for message in (Vague(), Torn()):
        with pytest.raises(TypeError, match=r"\.share does not say how it travels"):
            message.to_content()


def test_a_class_is_read_once() -> None:
    Order.from_content(SMALL.to_content())
    with patch.object(declared, "get_type_hints", side_effect=AssertionError):
        assert booked(Order.from_content(SMALL.to_content())) == booked(SMALL)


def test_a_subclass_adds_its_own_fields() -> None:
    @dataclass(frozen=True)
    class Express(Order):
        ACTION: ClassVar[str] = "express"

        hours: Annotated[int, whole(low=1, high=48)] = 24

    content = Express(4, HERE, 0.5, hours=3).to_content()
    assert Express.from_content(content).hours == 3
    with pytest.raises(WireError, match=r"A .express. request message has hours=0"):
        Express.from_content(changed(content, config={"hours": 0}))
    with pytest.raises(WireError, match=r"A .order. request message carries unknown"):
        Order.from_content(content)
