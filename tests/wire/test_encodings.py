"""Ways to send smashed data and cut gradients: what travels, what comes back, what is refused."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.strategies import floats, sampled_from

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.wire import content_bytes
from sfl_flower.wire.draft import Draft, Encodings
from sfl_flower.wire.encodings import FORMATS, encoding_of
from sfl_flower.wire.ho_sfl import ForwardReply, ProbeRequest
from sfl_flower.wire.reader import Reader
from sfl_flower.zo import Probing
from tests.local_grid import changed, roundtrip
from tests.wire.contents import MESSAGES, SETUP, TEXTS, Y, Z, booked

pytestmark = pytest.mark.flower

HALF = Encodings("float16", "float16")
ROUGH = (Z + np.float32(1 / 3)).astype(np.float32)
RAGGED = np.sin(np.arange(2 * 3 * 157, dtype=np.float32)).reshape(2, 3, 157)


PLAIN = [f"{name}:0.1" if name == "uniform" else name for name in FORMATS]
NAMED = (
    *PLAIN,
    *(f"{name}+deflate" for name in PLAIN),
    "topk:1+float32",
    "randtopk:1.0+int8+deflate",
)
"""Ways that leave nothing out."""
ERRORS = {
    "float32": 0.0, "float16": 5e-4, "bfloat16": 4e-3, "int8": 4e-3, "int4": 0.08,
    "uniform:0.1": 0.1,
}  # fmt: skip
"""The most that a format changes, of the largest value of a block; half a code where it rounds."""


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "value",
    [
        ROUGH,
        Z[:0],
        TEXTS + TEXTS / 3,
        ROUGH.reshape(4, 3, 1, 1),
        -ROUGH[:, :1],
        ROUGH[:, 0],
        RAGGED,
    ],
    ids=lambda value: str(value.shape),
)
def test_every_encoding_gives_values_back_in_their_shape(name: str, value: np.ndarray) -> None:
    encoding = encoding_of(name)
    assert encoding.name == name
    for what, rounds in (("smashed", 1.0), ("gradients", 2.0)):
        parts = encoding.encode(value, what)
        assert {suffix: str(part.dtype) for suffix, part in parts.items()} == dict(encoding.parts)
        back = encoding.decode(parts)
        assert (str(back.dtype), back.shape) == ("float32", value.shape)
        (error,) = (most for kind, most in ERRORS.items() if kind in name.split("+"))
        largest = np.abs(value).max(initial=0.0)
        np.testing.assert_allclose(back, value, rtol=0, atol=rounds * error * float(largest))
        coarse = any(kind in name for kind in ("int", "uniform"))
        assert np.array_equal(back == 0, value == 0) or what == "gradients" or coarse
        assert not back[value == 0].any()


@pytest.mark.parametrize(
    "name",
    ["", "float8", "int8+topk:0.1", "topk+int8", "topk:0+int8", "topk:2+int8", "topk:0.1", "int8+",
     "deflate", "topk:0.1+int8+deflate+deflate", "topk:0." + "1" * 60 + "+int8", "topk:nan+int8",
     "uniform", "uniform:0", "uniform:101", "uniform:+deflate", "int8:1", "uniform:nan"],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_with_what_names_look_like(name: str) -> None:
    with pytest.raises(ConfigError, match=r"smashed is '.*'; it must be one of float32, .*topk:S"):
        encoding_of(name, "smashed")


def test_int8_by_hand() -> None:
    """Nothing in the second row is negative: codes go to 255, and the scale's sign says so."""
    values = np.array([[127, -64, 0], [0, 50, 255]], np.float32) / 64
    parts = encoding_of("int8").encode(values, "smashed")
    assert parts[""].view(np.uint8).tolist() == [[127, 256 - 64, 0], [0, 50, 255]]
    assert parts[".scales"].tolist() == [[0x3C80], [0xBC80]]  # 1 / 64 and -1 / 64
    assert np.array_equal(encoding_of("int8").decode(parts), values)


def test_a_scale_is_rounded_up_so_that_no_code_overflows() -> None:
    values = np.array([[1.0, -0.5]], np.float32)
    parts = encoding_of("int8").encode(values, "smashed")
    # 1 / 127 = 0.0078740 lies between the bfloat16s 0x3C01, 0.0078735, and 0x3C02, 0.0079346.
    assert parts[".scales"].tolist() == [[0x3C02]] and parts[""].tolist() == [[126, -63]]


def test_int4_packs_two_codes_a_byte_low_first() -> None:
    values = np.array([[7.0, -7.0, 3.0], [15.0, 0.0, 8.0]], np.float32)
    parts = encoding_of("int4").encode(values, "smashed")
    assert parts[""].tolist() == [[0x97, 0x03], [0x0F, 0x08]]
    assert parts[".scales"].tolist() == [[0x3F80], [0xBF80]]  # 1.0 and -1.0
    assert parts[".shape"].tolist() == [2, 3]
    assert np.array_equal(encoding_of("int4").decode(parts), values)


def test_uniform_by_hand() -> None:
    """The root mean square of 30, -14 and six zeros is √137 = 11.7: half of it is the step."""
    values = np.array([[30, -14, 0, 0], [2, 0, 0, 0]], np.float32)
    parts = encoding_of("uniform:0.5").encode(values, "gradients")
    assert parts[".step"].tolist() == pytest.approx([0.5 * (1100 / 8) ** 0.5])  # 5.863
    assert parts[""].tolist() == [0xE5, 0x00, 0x00, 0x00]  # 5 and -2 steps; 2 is less than half one
    assert parts[".large"].size == 0
    # As smashed data the second row keeps something: it might be a position of a text.
    assert encoding_of("uniform:0.5").encode(values, "smashed")[""].tolist() == [0xE5, 0, 1, 0]
    # Of a fifth the step is 2.345: 13 steps do not fit into four bits.
    parts = encoding_of("uniform:0.2").encode(values, "gradients")
    assert parts[""].tolist() == [0xA8, 0x00, 0x01, 0x00] and parts[".large"].tolist() == [13]
    found = encoding_of("uniform:0.2").decode(parts)
    assert (found / parts[".step"]).tolist() == [[13, -6, 0, 0], [1, 0, 0, 0]]


def test_uniform_spends_its_bits_where_the_square_is() -> None:
    """Half of the rows are a hundredth of the others: they cost next to nothing."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((64, 512)).astype(np.float32)
    values[::2] /= 100
    sizes = {}
    for name in ("uniform:1+deflate", "int4+deflate"):
        parts = encoding_of(name).encode(values, "gradients")
        sizes[name] = sum(part.nbytes for part in parts.values())
    assert sizes["uniform:1+deflate"] < 0.55 * sizes["int4+deflate"]


@pytest.mark.parametrize(
    "values", [np.zeros((2, 3)), np.full((2, 3), 1e-45), np.full((1, 1), 3e38)]
)
def test_uniform_at_the_ends_of_float32(values: np.ndarray) -> None:
    encoding = encoding_of("uniform:1")
    back = encoding.decode(encoding.encode(values.astype(np.float32), "smashed"))
    assert np.array_equal(back, values.astype(np.float32) * (values != 1e-45))


def test_uniform_takes_longer_steps_where_the_largest_is_far_off() -> None:
    values = np.zeros((1, 300_000), np.float32)
    values[0, 7] = 1
    back = encoding_of("uniform:0.01").decode(encoding_of("uniform:0.01").encode(values, "smashed"))
    np.testing.assert_allclose(back, values, rtol=1e-6)


def test_a_block_has_a_scale_of_its_own() -> None:
    values = np.ones((1, 300), np.float32)
    values[0, 256:] = 1e-6
    parts = encoding_of("int8").encode(values, "smashed")
    assert parts[".scales"].shape == (1, 2)
    np.testing.assert_allclose(encoding_of("int8").decode(parts), values, rtol=0.005)


def test_cut_gradients_are_right_in_the_mean() -> None:
    """0.3 of a code becomes 1 in 0.3 of all places; to the nearest it would be 0 in all."""
    values = np.full((50, 256), 0.3, np.float32)
    values[:, 0], values[:, 1] = 7.0, -7.0
    encoding = encoding_of("int4")
    found = encoding.decode(encoding.encode(values, "gradients"))[:, 2:]
    assert set(np.unique(found)) == {0.0, 1.0}
    assert found.mean() == pytest.approx(0.3, abs=0.02)
    assert not encoding.decode(encoding.encode(values, "smashed"))[:, 2:].any()
    again = encoding.encode(values, "gradients")
    assert np.array_equal(again[""], encoding.encode(values, "gradients")[""])  # nothing is drawn


def test_the_largest_values_of_each_row_travel() -> None:
    values = np.array([[1.0, -4.0, 3.0, 0.5], [0.0, 0.0, 0.0, 2.0]], np.float32)
    parts = encoding_of("topk:0.5+float32").encode(values, "smashed")
    assert parts[""].tolist() == [[-4.0, 3.0], [0.0, 2.0]]
    assert parts[".kept"].tolist() == [[0b01100000], [0b10010000]]
    back = encoding_of("topk:0.5+float32").decode(parts)
    assert back.tolist() == [[0.0, -4.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0]]


def test_at_random_a_tenth_of_what_travels_are_others() -> None:
    values = np.arange(1, 1001, dtype=np.float32)[None].repeat(50, axis=0)
    encoding = encoding_of("randtopk:0.1+float32")
    back = encoding.decode(encoding.encode(values, "smashed"))
    assert ((back > 0).sum(axis=1) == 100).all()
    others = (back[:, :900] > 0).sum(axis=1)
    assert others.mean() == pytest.approx(10, abs=1.5) and others.std() > 1
    large = encoding_of("randtopk:0.9+float32")  # fewer others than travel
    assert ((large.decode(large.encode(values, "smashed")) > 0).sum(axis=1) == 900).all()


def test_zeros_and_repeats_deflate() -> None:
    values = np.zeros((8, 4096), np.float32)
    values[:, ::64] = 1.0
    plain, deflated = (encoding_of(name).encode(values, "") for name in ("int8", "int8+deflate"))
    assert sum(p.nbytes for p in deflated.values()) * 20 < sum(p.nbytes for p in plain.values())


def encoded(name: str, **changes: np.ndarray) -> dict[str, np.ndarray]:
    parts = dict(encoding_of(name).encode(np.ones((2, 300), np.float32), "smashed"))
    return parts | {key.replace("_", ".") if key != "own" else "": v for key, v in changes.items()}


U8, U16, U32 = np.uint8, np.uint16, np.uint32


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("int8", {"_scales": np.full((2, 2), 0x7F80, U16)}, "a scale that is not finite"),
        ("int8", {"_scales": np.zeros((2, 2), U16)}, "numbers of a scale of 0"),
        ("int8", {"_scales": np.ones((2, 1), U16)}, "has 2 scales; 2 rows of 300 have 4"),
        ("int4", {"own": np.zeros((2, 9), U8)}, "has 18 bytes of numbers"),
        ("int4", {"_shape": np.array([2**16, 2**16], U32)}, "at most 2147483647 bytes"),
        ("int4", {"_shape": np.ones(40, U32)}, "1 to 32 dimensions"),
        ("int4", {"_shape": np.zeros(0, U32)}, "1 to 32 dimensions"),
        ("int4", {"_shape": np.array([3, 300], U32)}, "3 rows of 300 have 6"),
        ("bfloat16", {"own": np.full((2, 3), 0x7F80, U16)}, "not finite"),
        ("uniform:1", {"own": np.zeros(299, U8)}, "has 299 bytes of numbers; 2 rows of 300 have 3"),
        ("uniform:1", {"_step": np.array([np.inf], np.float32)}, "has the step .inf.; it has one"),
        ("uniform:1", {"_step": np.array([-1], np.float32)}, "finite and at least 0"),
        ("uniform:1", {"_step": np.zeros(2, np.float32)}, "has the step"),
        ("uniform:1", {"_step": np.zeros(1, np.float32)}, "numbers of a step of 0"),
        ("uniform:1", {"_large": np.ones(3, np.int16)}, "has 3 large multiples, and 0 places"),
        ("topk:0.1+float32", {"_kept": np.zeros((2, 38), U8)}, "must be 30 of each row of 300"),
        ("topk:0.1+float32", {"_kept": np.zeros((2, 3), U8)}, "6 bytes of places; there are 76"),
        ("topk:0.1+float16", {"own": np.zeros((2, 9), np.float16)}, "18 numbers for 2 rows of 30"),
        ("int8+deflate", {"own": np.zeros(9, U8)}, "deflated array"),
        ("int8+deflate", {"_shapes": np.array([2, 2**31, 2**31, 0], U32)}, "at most 2147483647"),
        ("int8+deflate", {"_shapes": np.array([2, 2, 301, 2, 2, 2], U32)}, "does not hold the 610"),
        ("int8+deflate", {"_shapes": np.array([2, 2, 300, 2, 2], U32)}, "does not say the shape"),
        ("int8+deflate", {"_shapes": np.zeros(0, U32)}, "does not say the shape"),
        ("int8+deflate", {"_shapes": np.array([0, 0, 0], U32)}, "more shapes than it has parts"),
        ("float32+deflate", {"_shapes": np.array([3, 0, 2**32 - 1, 2**32 - 1], U32)}, "at most 2"),
        ("float32+deflate", {"_shapes": np.ones(2**20, U32)}, "more shapes than it has parts"),
        ("topk:0.1+float32", {"_shape": np.array([2**24, 0], U32)}, "18 numbers for|60 numbers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    name: str, changes: dict[str, np.ndarray], says: str
) -> None:
    with pytest.raises(WireError, match=says):
        encoding_of(name).decode(encoded(name, **changes))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("low", [-1, 0])
def test_no_code_overflows_where_rounding_goes_up(name: str, low: int) -> None:
    """Codes at the end of their range plus what is drawn may round to the next in float32."""
    most = {"int8": 127, "int4": 7}[name] * (1 if low else 2) + (0 if low else 1)
    values = np.full((64, 65536), most, np.float32)
    values[:, ::2] *= low or 1
    encoding = encoding_of(name)
    back = encoding.decode(encoding.encode(values, "gradients"))
    assert np.abs(back - values).max() <= 1  # -127 + 0.99999994 is -126 in float32


@pytest.mark.parametrize(
    "name", ["topk:0.02+float32", "topk:0.1+int4", "randtopk:0.05+int8", "uniform:2"]
)
@pytest.mark.parametrize("padded", [False, True])
def test_of_every_position_of_a_text_something_travels(name: str, padded: bool) -> None:
    """A position that arrived as zeros would count as padding."""
    z = np.random.default_rng(0).standard_normal((4, 24, 64)).astype(np.float32)
    z *= np.geomspace(1, 1e4, 24, dtype=np.float32)[None, :, None]
    z[0, -1] *= 0 if padded else 1
    draft = Draft(Encodings(name))
    draft.samples("z", z, "smashed")
    found = Reader(draft.content(), "reply", Encodings(name)).samples("z", "smashed")
    assert np.array_equal(found.any(axis=2), z.any(axis=2))


@pytest.mark.parametrize("name", ["int8+deflate", "int4", "int8"])
def test_narrow_rows_cost_no_more_than_what_they_stand_for(name: str) -> None:
    parts = encoding_of(name).encode(np.ones((100_000, 1), np.float32), "smashed")
    tracemalloc.start()
    encoding_of(name).decode(parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 4 * 100_000


@pytest.mark.parametrize("name", ["int8", "int4", "bfloat16", "topk:0.5+int8+deflate", "uniform:1"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_not_sent(name: str, value: float) -> None:
    with pytest.raises(WireError, match="The smashed data hold a value that is not finite"):
        encoding_of(name).encode(np.array([[0.0, value]], np.float32), "smashed")


def test_codes_that_stand_for_too_much_are_refused_where_they_are_read() -> None:
    draft = Draft(Encodings("int8", "int8"))
    draft.array("z", np.full((1, 2), 127, np.int8), "smashed")
    draft.array("z.scales", np.full((1, 1), 0x7F7F, np.uint16), "smashed")
    with pytest.raises(WireError, match="a value in 'z' that is not finite"):
        Reader(draft.content(), "reply", Encodings("int8")).samples("z", "smashed")


@given(
    values=arrays(
        np.float32,
        array_shapes(min_dims=1, max_dims=4, max_side=9),
        elements=floats(-(2.0**100), 2.0**100, width=32),
    ),
    name=sampled_from([*NAMED[:-2], "topk:0.3+int4+deflate", "randtopk:0.7+bfloat16"]),
)
def test_what_was_decoded_is_finite_of_its_shape_and_no_larger(
    values: np.ndarray, name: str
) -> None:
    assume("float16" not in name.split("+") or np.abs(values).max() < 65504)
    encoding = encoding_of(name)
    back = encoding.decode(encoding.encode(values, "gradients"))
    assert back.shape == values.shape and np.isfinite(back).all()
    assert np.abs(back).max() <= np.abs(values).max() * 1.15
    assert not back[values == 0].any()


def test_float16_rounds_to_the_nearest() -> None:
    (half,) = (
        encoding_of("float16").encode(np.array([1 / 3, 65519.0, -0.0], np.float32), "").values()
    )
    assert half.tolist() == [0.333251953125, 65504.0, 0.0]
    assert np.signbit(half[2])


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_float16_refuses_what_it_cannot_hold(value: float) -> None:
    says = r"The cut gradients hold a value of size .*, and float16 ends at 65504; set gradients=bf"
    with pytest.raises(WireError, match=says):
        encoding_of("float16").encode(np.array([0.0, value], np.float32), "gradients")


def test_a_reply_is_read_in_the_encoding_of_its_request_and_books_half() -> None:
    reply = ForwardReply(4, -1, ROUGH, Y, np.array([1, 3], np.int64))
    draft = reply.draft(HALF)
    assert draft.booked == {"smashed": ROUGH.nbytes // 2, "labels": 4}
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
