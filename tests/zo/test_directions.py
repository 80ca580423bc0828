"""Acceptance test A11: golden vectors, and the same bits however a direction is read."""

from __future__ import annotations

import math
import struct
from hashlib import blake2b
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import ConfigError
from sfl_flower.zo import LAWS, Direction, Key, run_key
from sfl_flower.zo.directions import BLOCK

RUN = run_key("golden", 0)
KEY = Key(round=7, step=1, stream=3, probe=2)

# First 16 values as float32 little-endian, and BLAKE2b-128 of the first 100 000.
GOLDEN = {
    "rademacher": (
        (
            "0000803f0000803f0000803f0000803f0000803f000080bf000080bf000080bf"
            "000080bf0000803f000080bf000080bf0000803f000080bf000080bf000080bf"
        ),
        "6d69c45b88857e54b879da0ca95cea8c",
    ),
    "gaussian": (
        (
            "baa00f402a920e3f8649ba3f911a4a3fd87f833f14d5b3beb602c9bf3f9a0ebf"
            "42597b3f35619dbe7bc98fbf751d5cbf04c68ebf29fcadbf0b25ccbea078923f"
        ),
        "0dde80c4493bed9f7ff110458aba40d8",
    ),
    "sphere": (
        (
            "e86e054081598d3f10c38a3f62cc3dbf30ad8ebebd8823bf0ea2963f9a79d93f"
            "e7112c3eb268b7be04893e3f7df9ea3e0cc02dba061180be9448bfbf05ed9fbd"
        ),
        "d05613b81466955e94f8ff1daf090441",
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_golden_vectors(law: str) -> None:
    values = Direction(RUN, KEY, 100_000, law).values().numpy().astype("<f4")
    first, digest = GOLDEN[law]
    assert values[:16].tobytes().hex() == first
    assert blake2b(values.tobytes(), digest_size=16).hexdigest() == digest


def philox_block(key: tuple[int, int], counter: int) -> list[int]:
    """Philox4x64-10 (Salmon et al., 2011), from the paper: four 64-bit words of one counter."""
    mask = (1 << 64) - 1
    x, k = [counter, 0, 0, 0], list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * x[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * x[2], 1 << 64)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return x


def spec_words(law_tag: int, count: int) -> list[int]:
    """First words of the direction of `KEY`, from docs/directions.md alone."""
    message = RUN + bytes([law_tag]) + struct.pack("<4Q", 7, 1, 3, 2)
    digest = blake2b(message, digest_size=16, person=b"sfl.direction.1").digest()
    key = struct.unpack("<2Q", digest)
    return [word for j in range(-(-count // 4)) for word in philox_block(key, j + 1)][:count]


def test_rademacher_follows_the_written_format() -> None:
    bits = [(word >> e) & 1 for word in spec_words(0, 9) for e in range(64)]
    expected = [-1.0 if bit else 1.0 for bit in bits]
    assert Direction(RUN, KEY, 576).values().tolist() == expected


def test_gaussian_follows_the_written_format() -> None:
    halves = [half for word in spec_words(1, 50) for half in (word & 0xFFFFFFFF, word >> 32)]
    expected = [NormalDist().inv_cdf((half + 0.5) / 2**32) for half in halves]
    values = Direction(RUN, KEY, 100, "gaussian").values()
    np.testing.assert_array_equal(values.numpy(), np.array(expected, dtype=np.float32))


def test_sphere_is_a_scaled_gaussian_stream_of_radius_sqrt_d() -> None:
    halves = [half for word in spec_words(2, 50) for half in (word & 0xFFFFFFFF, word >> 32)]
    x = np.array([NormalDist().inv_cdf((half + 0.5) / 2**32) for half in halves]).astype("f4")
    values = Direction(RUN, KEY, 100, "sphere").values().double()
    assert float(values.square().sum()) == pytest.approx(100.0, rel=1e-6)
    scale = math.sqrt(100.0 / float((x.astype("f8") ** 2).sum()))
    np.testing.assert_allclose(values.numpy(), x * scale, rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 2 * BLOCK + 77), max_size=6))
def test_any_chunking_gives_the_same_bits(law: str, cuts: list[int]) -> None:
    size = 2 * BLOCK + 77
    whole = Direction(RUN, KEY, size, law).values()
    direction = Direction(RUN, KEY, size, law)
    edges = sorted({0, size, *cuts})
    pieces = [direction.values(a, b) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("law", LAWS[:2])
def test_a_longer_direction_starts_with_the_shorter(law: str) -> None:
    long, short = Direction(RUN, KEY, 1000, law), Direction(RUN, KEY, 333, law)
    assert torch.equal(long.values(0, 333), short.values())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", [0, 5, 64, BLOCK - 3])
def test_add_to_is_one_product_and_one_sum(law: str, start: int) -> None:
    size = BLOCK + 130
    direction = Direction(RUN, KEY, size, law)
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(size - start, generator=generator)
    scale = 0.0123456789  # not a float32: it is rounded first
    expected = base.numpy() + np.float32(scale) * direction.values(start).numpy()
    out = torch.full_like(base, float("nan"))
    direction.add_to(out, base, scale, start)
    assert torch.equal(out, torch.from_numpy(expected))
    direction.add_to(base, base, scale, start)
    assert torch.equal(base, out)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", [0, 3, 64])
def test_the_device_path_gives_the_bits_of_the_cpu_path(law: str, start: int) -> None:
    size = 10_007
    base = torch.randn(size - start, generator=torch.Generator().manual_seed(2))
    on_cpu, on_device = torch.empty_like(base), torch.empty_like(base)
    direction = Direction(RUN, KEY, size, law)
    direction.add_to(on_cpu, base, -3e-3, start)
    direction._add_device(on_device, base, np.float32(-3e-3), start)
    assert torch.equal(on_cpu, on_device)


@pytest.mark.gpu
@pytest.mark.parametrize("law", LAWS)
def test_a_gpu_gives_the_bits_of_the_cpu(law: str) -> None:
    size = 5_000_011
    base = torch.randn(size, generator=torch.Generator().manual_seed(3))
    on_cpu, on_gpu = torch.empty_like(base), torch.empty(size, device="cuda")
    direction = Direction(RUN, KEY, size, law)
    direction.add_to(on_cpu, base, 1e-3)
    direction.add_to(on_gpu, base.cuda(), 1e-3)
    assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.parametrize("law", LAWS)
def test_first_two_moments_and_independence(law: str) -> None:
    d, n = 40, 2000
    draws = torch.stack([Direction(RUN, Key(i), d, law).values() for i in range(n)]).double()
    second = draws.T @ draws / n
    assert float((second - torch.eye(d)).abs().max()) < 5.5 / math.sqrt(n)
    assert float(draws.mean(0).abs().max()) < 5 / math.sqrt(n)


def test_a_sphere_of_one_element_is_a_sign() -> None:
    values = {float(Direction(RUN, Key(i), 1, "sphere").values()) for i in range(40)}
    assert {round(value, 3) for value in values} == {-1.0, 1.0}


def test_a_direction_is_drawn_once_and_weighs_one_bit_per_element() -> None:
    direction = Direction(RUN, KEY, 6400)
    first = direction._packed(0, 6400)
    assert first.nbytes == 800
    assert direction._packed(0, 6400).base is first.base


@pytest.mark.parametrize("size", [0, -1, 1.0, True])
def test_bad_sizes_are_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Direction(RUN, KEY, size)  # type: ignore[arg-type]


def test_bad_ranges_and_tensors_are_refused() -> None:
    direction = Direction(RUN, KEY, 10)
    with pytest.raises(ConfigError, match=r"3\.\.11"):
        direction.values(3, 11)
    good = torch.zeros(10)
    with pytest.raises(ConfigError, match="inside a direction"):
        direction.add_to(good, good, 1.0, start=1)
    with pytest.raises(ConfigError, match="float32"):
        direction.add_to(good.double(), good, 1.0)
    with pytest.raises(ConfigError, match="contiguous"):
        direction.add_to(torch.zeros(20)[::2], good, 1.0)
    with pytest.raises(ConfigError, match="elements"):
        direction.add_to(torch.zeros(9), good, 1.0)
    with pytest.raises(ConfigError, match="not finite"):
        direction.add_to(good, good, 1e39)
    assert torch.equal(good, torch.zeros(10))
