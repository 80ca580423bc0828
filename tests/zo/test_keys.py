from __future__ import annotations

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.zo import LAWS, SHARED_STREAM, Key, client_stream, run_key, step_keys
from sfl_flower.zo.keys import philox_key


def test_run_key_is_16_fixed_bytes() -> None:
    assert run_key("golden", 0).hex() == "dfcf7cd4d5ed9e0ecc7b0f4028380dc0"


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), ("1",)), (("ab", "c"), ("a", "bc")), ((b"a",), ("a",)), ((1, 2), (12,)), ((), ("",))],
)
def test_run_key_tells_parts_apart(one: tuple, other: tuple) -> None:
    assert run_key(*one) != run_key(*other)


@pytest.mark.parametrize("part", [1.5, None, True])
def test_run_key_refuses_what_has_no_one_encoding(part: object) -> None:
    with pytest.raises(ConfigError, match="int, str or bytes"):
        run_key(part)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, True])
@pytest.mark.parametrize("field", ["round", "step", "stream", "probe"])
def test_key_fields_are_unsigned_32_bit(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        Key(**{"round": 0, field: value})  # type: ignore[arg-type]


def test_every_field_and_the_law_change_the_philox_key() -> None:
    run = run_key(1)
    keys = [Key(1), Key(0, 1), Key(0, 0, 1), Key(0, 0, 0, 1), Key(0)]
    drawn = {philox_key(run, key, law.tag) for key in keys for law in LAWS.values()}
    drawn |= {philox_key(run_key(2), Key(0), law.tag) for law in LAWS.values()}
    assert len(drawn) == (len(keys) + 1) * len(LAWS)


def test_philox_key_refuses_a_short_run_key() -> None:
    with pytest.raises(ConfigError, match="16 bytes"):
        philox_key(b"short", Key(0), 0)


def test_a_step_has_a_key_for_each_probe_and_a_client_a_stream_of_its_own() -> None:
    assert step_keys(7, 5, client_stream(2), 2) == [Key(7, 5, 3, 0), Key(7, 5, 3, 1)]
    assert [client_stream(partition) for partition in range(3)] == [1, 2, 3]
    assert SHARED_STREAM not in {client_stream(partition) for partition in range(100)}
