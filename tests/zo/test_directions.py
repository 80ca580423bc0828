"""Directions: golden vectors, and the same bits however a direction is read."""

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
from sfl_flower.zo import LAWS, Directions, Key, run_key
from sfl_flower.zo.signs import PackedSigns
from sfl_flower.zo.words import WordStream

BLOCK = PackedSigns.block
"""The largest of any law."""

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
    "rank_one": (
        (
            "0000803f000080bf0000803f0000803f0000803f000080bf0000803f000080bf"
            "0000803f000080bf000080bf0000803f0000803f0000803f000080bf0000803f"
        ),
        "7d8875ce8712027d3a69ff2a809cb9d6",
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_golden_vectors(law: str) -> None:
    values = Directions(RUN, law, [(100_000,)]).of(KEY).values().numpy().astype("<f4")
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
    assert Directions(RUN, "rademacher", [(576,)]).of(KEY).values().tolist() == expected


def test_rank_one_follows_the_written_format() -> None:
    bits = [(word >> e) & 1 for word in spec_words(3, 2) for e in range(64)]
    signs = [-1.0 if bit else 1.0 for bit in bits]
    shapes = [(5,), (7, 3, 3), (), (0, 9), (4, 25)]
    kernel = np.outer(signs[5:12], signs[12:21])  # after the 5 of the vector: 7 of a, 9 of b
    matrix = np.outer(signs[22:26], signs[26:51])  # after the scalar's
    expected = [*signs[:5], *kernel.reshape(-1), signs[21], *matrix.reshape(-1)]
    assert Directions(RUN, "rank_one", shapes).of(KEY).values().tolist() == expected


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=5
    ).filter(lambda shapes: any(math.prod(shape) for shape in shapes)),
    data=st.data(),
)
def test_rank_one_has_the_same_bits_from_anywhere(
    shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    direction = Directions(RUN, "rank_one", shapes).of(KEY)
    whole = direction.values()
    low = data.draw(st.integers(0, direction.size))
    high = data.draw(st.integers(low, direction.size))
    assert torch.equal(direction.values(low, high), whole[low:high])
    assert set(whole.tolist()) <= {-1.0, 1.0}
    at = 0
    for shape in shapes:
        part = whole[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
        if len(shape) > 1 and part.numel():
            assert torch.linalg.matrix_rank(part.reshape(shape[0], -1)) == 1


def test_rank_one_has_its_second_moments_within_a_matrix() -> None:
    draws = torch.stack(
        [Directions(RUN, "rank_one", [(4, 5)]).of(Key(i)).values() for i in range(4000)]
    ).double()
    second = draws.T @ draws / len(draws)
    assert float((second - torch.eye(20)).abs().max()) < 5.5 / math.sqrt(len(draws))


def test_gaussian_follows_the_written_format() -> None:
    halves = [half for word in spec_words(1, 50) for half in (word & 0xFFFFFFFF, word >> 32)]
    expected = [NormalDist().inv_cdf((half + 0.5) / 2**32) for half in halves]
    values = Directions(RUN, "gaussian", [(100,)]).of(KEY).values()
    np.testing.assert_array_equal(values.numpy(), np.array(expected, dtype=np.float32))


def test_sphere_is_a_scaled_gaussian_stream_of_radius_sqrt_d() -> None:
    halves = [half for word in spec_words(2, 50) for half in (word & 0xFFFFFFFF, word >> 32)]
    x = np.array([NormalDist().inv_cdf((half + 0.5) / 2**32) for half in halves]).astype("f4")
    values = Directions(RUN, "sphere", [(100,)]).of(KEY).values().double()
    assert float(values.square().sum()) == pytest.approx(100.0, rel=1e-6)
    scale = math.sqrt(100.0 / float((x.astype("f8") ** 2).sum()))
    np.testing.assert_allclose(values.numpy(), x * scale, rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 2 * BLOCK + 77), max_size=6))
def test_any_chunking_gives_the_same_bits(law: str, cuts: list[int]) -> None:
    size = 2 * BLOCK + 77
    whole = Directions(RUN, law, [(size,)]).of(KEY).values()
    direction = Directions(RUN, law, [(size,)]).of(KEY)
    edges = sorted({0, size, *cuts})
    pieces = [direction.values(a, b) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("law", ("rademacher", "gaussian"))
def test_a_longer_direction_starts_with_the_shorter(law: str) -> None:
    long, short = Directions(RUN, law, [(1000,)]).of(KEY), Directions(RUN, law, [(333,)]).of(KEY)
    assert torch.equal(long.values(0, 333), short.values())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", [0, 5, 64, BLOCK - 3])
def test_add_to_is_one_product_and_one_sum(law: str, start: int) -> None:
    size = BLOCK + 130
    direction = Directions(RUN, law, [(size,)]).of(KEY)
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
    direction = Directions(RUN, law, [(size,)]).of(KEY)
    direction.add_to(on_cpu, base, -3e-3, start)
    direction.times(-3e-3)._add_device(on_device, base, start)
    assert torch.equal(on_cpu, on_device)


@pytest.mark.gpu
@pytest.mark.parametrize("law", LAWS)
def test_a_gpu_gives_the_bits_of_the_cpu(law: str) -> None:
    size = 5_000_011
    base = torch.randn(size, generator=torch.Generator().manual_seed(3))
    on_cpu, on_gpu = torch.empty_like(base), torch.empty(size, device="cuda")
    direction = Directions(RUN, law, [(size,)]).of(KEY)
    direction.add_to(on_cpu, base, 1e-3)
    direction.add_to(on_gpu, base.cuda(), 1e-3)
    assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.parametrize("law", LAWS)
def test_first_two_moments_and_independence(law: str) -> None:
    d, n = 40, 2000
    draws = torch.stack(
        [Directions(RUN, law, [(d,)]).of(Key(i)).values() for i in range(n)]
    ).double()
    second = draws.T @ draws / n
    assert float((second - torch.eye(d)).abs().max()) < 5.5 / math.sqrt(n)
    assert float(draws.mean(0).abs().max()) < 5 / math.sqrt(n)


def test_a_sphere_of_one_element_is_a_sign() -> None:
    values = {float(Directions(RUN, "sphere", [(1,)]).of(Key(i)).values()) for i in range(40)}
    assert {round(value, 3) for value in values} == {-1.0, 1.0}


def test_a_direction_is_drawn_once_and_weighs_one_bit_per_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direction = Directions(RUN, "rademacher", [(6400,)]).of(KEY)
    drawn: list[int] = []
    read = WordStream.read_bytes

    def noted(stream: WordStream, count: int) -> np.ndarray:
        drawn.append(8 * count)
        return read(stream, count)

    monkeypatch.setattr(WordStream, "read_bytes", noted)
    for _ in range(3):
        direction.values()
    assert drawn == [800]


@pytest.mark.parametrize("law", LAWS)
def test_reading_once_from_front_to_back_or_from_anywhere_gives_the_same_bits(law: str) -> None:
    directions = Directions(RUN, law, [(1000,)])
    whole, once = directions.of(KEY).values().numpy(), directions.values(KEY, once=True)
    product = once.times(np.float32(1.0), np.empty(126, dtype=np.intp))
    for start, stop in ((0, 128), (128, 640), (640, 1000), (64, 128), (3, 17), (17, 1000)):
        out = np.empty(stop - start, dtype=np.float32)
        product.write(out, start)
        assert np.array_equal(out, whole[start:stop])


def test_tensors_lie_one_after_another_in_a_direction() -> None:
    flat, shaped = Directions(RUN, "sphere", [(12,)]), Directions(RUN, "sphere", [(2, 3), (), (5,)])
    assert (shaped.size, shaped.shapes) == (12, ((2, 3), (), (5,)))
    assert torch.equal(shaped.of(KEY).values(), flat.of(KEY).values())


def test_a_law_is_known_by_its_name_and_its_tag() -> None:
    assert [(law.name, law.tag) for law in LAWS.values()] == [
        ("rademacher", 0), ("gaussian", 1), ("sphere", 2), ("rank_one", 3),
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match="'cauchy'; use one of rademacher, gaussian, sphere, rank_one"
    ):
        Directions(RUN, "cauchy", [(3,)])
    with pytest.raises(ConfigError, match="16 bytes"):
        Directions(b"short", "sphere", [(3,)])


@pytest.mark.parametrize("size", [0, -1, 1.0, True])
def test_bad_sizes_are_refused(size: object) -> None:
    with pytest.raises(ConfigError, match=r"no element|ints from 0 on"):
        Directions(RUN, "rademacher", [(size,)])  # type: ignore[list-item]


def test_bad_ranges_and_tensors_are_refused() -> None:
    direction = Directions(RUN, "rademacher", [(10,)]).of(KEY)
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
