"""Keys of secure sums: agreement, derivation, encryption, and masks.

X25519 gives each pair of clients a secret, HKDF with SHA-256 what is used of it, for one purpose in
one round; ChaCha20 stretches 16 bytes to a mask, ChaCha20-Poly1305 encrypts what the server passes
on.  All of it is the package `cryptography`'s.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.privacy.secure_circle import MARK_BYTES

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as missing:
    raise ConfigError(
        f"secure_sums needs the package cryptography ({missing}); install sfl-flower[secure]."
    ) from missing

__all__ = [
    "agreed",
    "decrypted",
    "derived",
    "encrypted",
    "mark",
    "mask",
    "new_key",
    "public_key",
]


def new_key() -> bytes:
    """Return a private key, `KEY_BYTES` of the operating system's randomness."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Return the public key that belongs to a private one."""
    key = X25519PrivateKey.from_private_bytes(private)
    return key.public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes) -> bytes:
    """Return the secret of two clients, 32 bytes: the same from either's private key.

    Raises
    ------
    WireError
        The public key is none.
    """
    try:
        key = X25519PrivateKey.from_private_bytes(private)
        return key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise WireError(f"A public key of a neighbour is none ({error}).") from error


def derived(secret: bytes, purpose: str, round: int, of: bytes = b"", length: int = 32) -> bytes:
    """Return bytes for one purpose in one round (HKDF, RFC 5869).

    Parameters
    ----------
    secret : bytes
        What they follow from.
    purpose, round : str, int
        What they are for.
    of : bytes
        Whose they are, where both ends of a pair have one.
    length : int
        How many.
    """
    info = b"sfl_flower/" + purpose.encode() + round.to_bytes(8, "little") + of
    return HKDF(SHA256(), length, None, info).derive(secret)


def mark(secret: bytes) -> bytes:
    """Return `MARK_BYTES` by which a secret is known again, and which do not give it away."""
    return hashlib.sha256(b"sfl_flower/mark" + secret).digest()[:MARK_BYTES]


def mask(seed: bytes, count: int) -> NDArray[np.uint64]:
    """Return a mask of so many integers modulo 2^64, which `seed` alone decides (ChaCha20).

    Parameters
    ----------
    seed : bytes
        At least 16 bytes, never used for another mask.
    count : int
        Integers.
    """
    cipher = Cipher(ChaCha20(derived(seed, "stream", 0), bytes(16)), None)
    stream = cipher.encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, "<u8").astype(np.uint64)


def encrypted(key: bytes, plain: bytes) -> bytes:
    """Encrypt with a key that is used this once; `TAG_BYTES` longer."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, None)


def decrypted(key: bytes, sealed: bytes) -> bytes | None:
    """Decrypt; None where it was not sealed with this key, or was altered."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return None
