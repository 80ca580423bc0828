from __future__ import annotations

import sys

import numpy as np
import pytest

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.privacy.secure_keys import (
    agreed,
    decrypted,
    derived,
    encrypted,
    mark,
    mask,
    new_key,
    public_key,
)


def test_two_agree_and_a_third_does_not() -> None:
    one, two, three = new_key(), new_key(), new_key()
    assert agreed(one, public_key(two)) == agreed(two, public_key(one))
    assert agreed(one, public_key(two)) != agreed(three, public_key(one))


@pytest.mark.parametrize("key", [bytes(32), b"", b"\x01" + bytes(31), b"short"])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    with pytest.raises(WireError, match="public key of a neighbour is none"):
        agreed(new_key(), key)


def test_what_is_derived_is_for_one_purpose_one_round_and_one_owner() -> None:
    found = {
        derived(b"s" * 32, purpose, round, of)
        for purpose in ("a", "b")
        for round in (1, 2)
        for of in (b"", b"x")
    }
    assert len(found) == 8
    assert derived(b"s" * 32, "a", 1) == derived(b"s" * 32, "a", 1)


def test_a_mask_is_of_the_seed_alone_and_of_all_64_bits() -> None:
    found = mask(b"s" * 16, 4096)
    assert found.dtype == np.uint64
    assert np.array_equal(found[:10], mask(b"s" * 16, 10))
    assert not np.array_equal(found[:10], mask(b"t" * 16, 10))
    ones = np.unpackbits(found.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / (4096 * 64) ** 0.5
    assert (found >= 2**63).any() and (found < 2**63).any()


def test_what_is_sealed_opens_with_its_key_and_unaltered() -> None:
    sealed = encrypted(b"k" * 32, b"shares")
    assert decrypted(b"k" * 32, sealed) == b"shares"
    assert decrypted(b"l" * 32, sealed) is None
    assert decrypted(b"k" * 32, bytes([sealed[0] ^ 1]) + sealed[1:]) is None


def test_a_mark_tells_secrets_apart() -> None:
    assert mark(b"a" * 16) != mark(b"b" * 16)
    assert len(mark(b"a" * 16)) == 8


def test_without_the_package_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    monkeypatch.delitem(sys.modules, "sfl_flower.privacy.secure_keys")
    with pytest.raises(ConfigError, match=r"needs the package cryptography .*sfl-flower\[secure\]"):
        import sfl_flower.privacy.secure_keys  # noqa: F401
