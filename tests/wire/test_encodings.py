"""Ways to send smashed data and cut gradients: what travels, what comes back, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sfl_flower.errors import WireError
from sfl_flower.wire import content_bytes
from sfl_flower.wire.draft import Draft, Encodings
from sfl_flower.wire.encodings import ENCODINGS
from sfl_flower.wire.ho_sfl import ForwardReply, ProbeRequest
from sfl_flower.wire.reader import Reader
from sfl_flower.zo import Probing
from tests.local_grid import changed, roundtrip
from tests.wire.contents import MESSAGES, SETUP, TEXTS, Y, Z, booked

pytestmark = pytest.mark.flower

HALF = Encodings("float16", "float16")
ROUGH = (Z + np.float32(1 / 3)).astype(np.float32)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("value", [ROUGH, Z[:0], TEXTS + TEXTS / 3, ROUGH.reshape(4, 3, 1, 1)])
def test_every_encoding_gives_values_back_in_their_shape(name: str, value: np.ndarray) -> None:
    encoding = ENCODINGS[name]
    assert encoding.name == name
    parts = encoding.encode(value, "smashed")
    assert {suffix: str(part.dtype) for suffix, part in parts.items()} == dict(encoding.parts)
    back = encoding.decode(parts)
    assert (str(back.dtype), back.shape) == ("float32", value.shape)
    np.testing.assert_allclose(back, value, rtol=1e-3)


def test_float16_rounds_to_the_nearest() -> None:
    (half,) = ENCODINGS["float16"].encode(np.array([1 / 3, 65519.0, -0.0], np.float32), "").values()
    assert half.tolist() == [0.333251953125, 65504.0, 0.0]
    assert np.signbit(half[2])


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_float16_refuses_what_it_cannot_hold(value: float) -> None:
    says = r"The cut gradients hold a value of size .*, and float16 ends at 65504; set gradients=fl"
    with pytest.raises(WireError, match=says):
        ENCODINGS["float16"].encode(np.array([0.0, value], np.float32), "gradients")


def test_a_reply_is_read_in_the_encoding_of_its_request_and_books_half() -> None:
    reply = ForwardReply(4, -1, ROUGH, Y, np.array([1, 3], np.int64))
    draft = reply.draft(HALF)
    assert draft.booked == {"smashed": ROUGH.nbytes // 2, "labels": 32}
    reader = Reader(roundtrip(draft.content()), "reply", HALF)
    back = ForwardReply.from_reader(reader)
    assert reader.booked == draft.booked
    assert np.array_equal(back.z, ROUGH.astype(np.float16).astype(np.float32))
    assert np.array_equal(reply.z, ROUGH)  # the sender keeps its own
    with pytest.raises(WireError, match=r"has 'z' as float16 .*, expected float32"):
        ForwardReply.from_content(draft.content())
    with pytest.raises(WireError, match=r"has 'z' as float32 .*, expected float16"):
        ForwardReply.from_reader(Reader(reply.to_content(), "reply", HALF))


def test_a_request_says_itself_how_its_cut_gradients_travel() -> None:
    plain = ProbeRequest(4, 8, 1, SETUP, ROUGH, 0, Probing(5))
    short = replace(plain, setup=replace(SETUP, gradients="float16"))
    assert booked(plain)["gradients"] == 2 * booked(short)["gradients"] == ROUGH.nbytes
    back = ProbeRequest.from_content(roundtrip(short.to_content()))
    assert np.array_equal(back.lam, ROUGH.astype(np.float16).astype(np.float32))
    assert short.encodings == Encodings(gradients="float16")
    with pytest.raises(WireError, match="gradients='float8', expected one of float32, float16"):
        ProbeRequest.from_content(changed(short.to_content(), config={"gradients": "float8"}))


def test_padding_is_left_out_first() -> None:
    texts = TEXTS * np.float32(1 / 3)
    reply = replace(MESSAGES["forward reply, texts"], z=texts)
    draft = reply.draft(HALF)
    assert draft.booked["smashed"] == 4 * 2 * 30 * 2 + 4
    reader = Reader(roundtrip(draft.content()), "reply", HALF)
    back = ForwardReply.from_reader(reader).z
    assert np.array_equal(back, texts.astype(np.float16).astype(np.float32))
    assert reader.booked == draft.booked


def test_a_value_that_is_not_finite_is_refused_in_half_precision_too() -> None:
    draft = Draft(HALF)
    draft.array("z", np.array([1, np.inf], np.float16), "smashed")
    with pytest.raises(WireError, match="a value in 'z' that is not finite"):
        Reader(draft.content(), "reply", HALF).samples("z", "smashed")


def test_each_message_costs_no_more_in_half_precision() -> None:
    for message in MESSAGES.values():
        plain, half = message.draft(), message.draft(HALF)
        for category in ("smashed", "labels", "weights", "scalars"):
            share = 0.6 if category == "smashed" else 1.0
            if category in plain.booked and not hasattr(message, "setup"):
                assert half.booked[category] <= share * plain.booked[category]
        assert content_bytes(half.content()) <= content_bytes(plain.content())
