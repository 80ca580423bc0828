from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.errors import ConfigError, JournalError, WireError
from sfl_flower.zo import Directions, Guide, Key, condition_guided, guided, run_key
from sfl_flower.zo.law import Values

RUN = run_key("guide")
SHAPES = ((2, 2), (3,))
"""Seven elements in two tensors: two rows of two columns, and a row of three."""
FACTORS = (2.0, 1.0, 1.0, 3.0, 0.5, 1.0, 2.0, 4.0)
"""Rows and columns of the first tensor, row and columns of the second."""


def guide(signs: int = 0b1001101, factors: tuple[float, ...] = FACTORS) -> Guide:
    return Guide(7, bytes([signs]), np.array(factors, np.float32))


def elements(made: Guide, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> np.ndarray:
    return Directions(RUN, "rademacher", shapes).along(made).values().numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_elements_by_hand() -> None:
    assert elements(guide()).tolist() == [-2.0, 6.0, -1.0, -3.0, 0.5, 1.0, -2.0]
    assert guide().squared(SHAPES) == 4 + 36 + 1 + 9 + 0.25 + 1 + 4
    assert elements(guide().times(-3.0, SHAPES)).tolist() == [6, -18, 3, 9, -1.5, -3, 6]
    # What an optimiser makes of coefficients it makes of the rows' factors.
    half = guide().values(SHAPES, lambda rows: (0.5 * rows).tolist())
    out = np.empty(7, np.float32)
    half.write(out, 0, np.float32(1.0))
    assert out.tolist() == [-1.0, 3.0, -0.5, -1.5, 0.25, 0.5, -1.0]


def test_the_guide_towards_a_vector_by_hand() -> None:
    made = Guide.towards(np.array([3, -1, 1, -3, 0, -6, 6], np.float32), SHAPES)
    assert made is not None and made.signs == bytes([0b0101010])
    # Rows and columns of the first have means of 2; the second is one row, so as it is.
    assert elements(made) == pytest.approx(
        np.array([2, -2, 2, -2, 0, -6, 6]) * np.sqrt(7 / (4 * 4 + 72)), rel=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
def test_magnitudes_of_rank_one_are_met_and_others_nearly(
    seed: int, rows: int, columns: int, more: int
) -> None:
    rng = np.random.default_rng(seed)
    shapes = ((rows, columns), (more,))
    outer = np.outer(rng.standard_normal(rows), rng.standard_normal(columns)).reshape(-1)
    target = np.concatenate([outer, rng.standard_normal(more)]).astype(np.float32)
    made = Guide.towards(target, shapes)
    assert made is not None
    assert cosine(elements(made, shapes), target) == pytest.approx(1, abs=1e-5)
    assert made.squared(shapes) == pytest.approx(rows * columns + more, rel=1e-5)
    noisy = rng.standard_normal(len(target)).astype(np.float32)
    other = Guide.towards(noisy, shapes)
    assert other is not None
    assert cosine(elements(other, shapes), noisy) >= cosine(np.sign(noisy), noisy) - 0.1


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_gives_none(bad: float) -> None:
    assert Guide.towards(np.array([0, 0, 0, 0, 0, 0, bad], np.float32), SHAPES) is None


def test_a_tensor_without_elements_or_gradient_counts_nothing() -> None:
    shapes = ((2,), (0, 3), (2,))
    made = Guide.towards(np.array([1, -1, 0, 0], np.float32), shapes)
    assert made is not None
    found = elements(made, shapes).tolist()
    assert found == pytest.approx([np.sqrt(2), -np.sqrt(2), 0, 0], rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 0),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_any_part_read_alone_and_on_a_device_is_that_of_the_whole(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    shapes = tuple((size, 3) if index % 2 else (size,) for index, size in enumerate(sizes))
    count = sum(int(np.prod(shape)) for shape in shapes)
    target = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    made = Guide.towards(target, shapes)
    assert made is not None
    whole = elements(made, shapes)
    assert np.sign(whole).tolist() == np.sign(target).tolist()
    low = data.draw(st.integers(0, len(whole)))
    high = data.draw(st.integers(low, len(whole)))
    direction = Directions(RUN, "rademacher", shapes).along(made)
    assert direction.values(low, high).tolist() == whole[low:high].tolist()
    there = made.values(shapes).on(torch.device("cpu"), low, high, np.float32(4.0))
    assert torch.equal(there, torch.from_numpy(whole[low:high] * np.float32(4.0)))
    base = torch.ones(high - low)
    direction.add_to(base, base, 0.25, start=low)
    assert torch.equal(base, 1 + torch.from_numpy(whole[low:high] * np.float32(0.25)))


def test_blocks_meet_across_tensors() -> None:
    shapes = ((70_001,), (251, 251))
    target = np.random.default_rng(1).standard_normal(133_002).astype(np.float32)
    made = Guide.towards(target, shapes)
    assert made is not None
    direction = Directions(RUN, "rademacher", shapes).of(Key(3))
    exact = np.sum(elements(made, shapes).astype(np.float64) * direction.values().numpy())
    assert made.overlap(direction._values, shapes) == pytest.approx(exact, rel=1e-6)


def test_the_bytes_of_a_guide() -> None:
    data = struct.pack("<2I8f", 7, 8, *FACTORS) + bytes([0b1001101])
    assert guide().encode() == data and guide().nbytes == len(data)
    assert Guide.decode(data).encode() == data


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 7), st.integers(0, 12))
def test_random_bytes_are_a_guide_in_one_spelling_or_refused(
    data: bytes, tensors: int, size: int
) -> None:
    for raw in (data, struct.pack("<2I", size, tensors) + data):
        try:
            assert Guide.decode(raw).encode() == raw
        except WireError:
            pass


@pytest.mark.parametrize(
    ("size", "signs", "factors"),
    [
        (0, b"", [1.0]),
        (7, b"", [1.0]),
        (7, b"\0\0", [1.0]),
        (7, b"\x80", [1.0]),
        (8, b"\x80", []),
        (8, b"\x80", [[1.0]]),
        (8, b"\x80", [np.nan]),
        (8, b"\x80", [1e7]),
        (2**32, b"\x80", [1.0]),
    ],
)
def test_an_illegal_guide_cannot_be_made(size: int, signs: bytes, factors: list[float]) -> None:
    with pytest.raises(JournalError):
        Guide(size, signs, np.array(factors, np.float32))


def test_a_guide_over_other_tensors_is_refused() -> None:
    for shapes in (((2, 2), (4,)), ((8,),), ((2, 2), (2,), (1,)), ()):
        assert not guide().fits(shapes)
        with pytest.raises(ConfigError, match="7 elements and 8 factors"):
            Directions(RUN, "rademacher", shapes).along(guide())


class _Given(Directions):
    """Directions whose probes are the rows of a table."""

    table = np.empty((0, 0), np.float32)

    def values(self, key: Key, once: bool = False) -> Values:
        row = self.table[key.probe]

        class Row(Values):
            def write(self, out: np.ndarray, start: int, constant: np.float32) -> None:
                np.multiply(row[start : start + len(out)], constant, out=out)

        return Row()


@pytest.mark.parametrize("rest", [1.0, 0.25, 0.0])
def test_over_all_signs_the_mean_is_the_gradient(rest: float) -> None:
    """Each of the 2⁷ Rademacher vectors once: E[g] = q̂q̂ᵀ∇L + ρ (I - q̂q̂ᵀ) ∇L, 1/3 of P = 3."""
    gradient = np.arange(1.0, 8.0)
    directions = _Given(RUN, "rademacher", SHAPES)
    directions.table = np.array(list(itertools.product((-1, 1), repeat=7)), np.float32)
    keys = [Key(0, probe=probe) for probe in range(len(directions.table))]
    a = elements(guide()).astype(np.float64)
    scalars = directions.table.astype(np.float64) @ gradient
    found, own = guided(keys, scalars / len(keys), directions, guide(), float(a @ gradient), rest)
    estimate = found @ directions.table + elements(own).astype(np.float64)
    along = a * (a @ gradient) / (a @ a)
    assert np.allclose(estimate, along + rest * (gradient - along), rtol=1e-5)
    assert estimate @ a == pytest.approx(gradient @ a, rel=1e-6)


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_along_the_guide_nothing_is_noise(law: str) -> None:
    gradient = np.array([3.0, -1, 2, 0, 1, -2, 4])
    directions = Directions(RUN, law, SHAPES)
    keys = [Key(5, probe=probe) for probe in range(3)]
    u = np.stack([directions.of(key).values().numpy() for key in keys]).astype(np.float64)
    a = elements(guide()).astype(np.float64)
    found, own = guided(keys, (u @ gradient)[None] / 3, directions, guide(), float(a @ gradient), 1)
    estimate = found[0] @ u + elements(own)
    assert estimate @ a == pytest.approx(gradient @ a, rel=1e-5)
    plain = (u @ gradient) @ u / 3
    across = plain - a * (a @ plain) / (a @ a)
    assert np.allclose(estimate - a * (a @ estimate) / (a @ a), across, rtol=1e-4, atol=1e-5)


def test_a_guides_scalar_is_scaled_with_the_others_and_held_by_the_norm() -> None:
    scalars = np.array([3.0, -4.0, 10.0], np.float32)
    free = condition_guided(scalars, 0.5, 0.0, "none", 16)
    assert free.tolist() == [3.0, -4.0, 10.0]
    # The norm is √12.5 / 0.5; clipped to 1 the others shrink to 1 / 7.07 of what they were, and so
    # does the guide's: 10 / 7.07 = 1.41, which is below 1 · 0.5 · √16.
    held = condition_guided(scalars, 0.5, 1.0, "none", 16)
    assert held == pytest.approx(scalars * 0.5 / np.sqrt(12.5))
    assert condition_guided(scalars, 0.5, 1.0, "none", 4)[-1] == 1.0
    assert condition_guided(-scalars, 0.5, 1.0, "none", 4)[-1] == -1.0
    spread = condition_guided(scalars, 0.5, 0.0, "spread", 16)
    assert spread == pytest.approx(scalars * 0.5 / np.sqrt(24.5))
    still = condition_guided(np.array([0.0, 0.0, 2.0], np.float32), 0.5, 0.0, "none", 16)
    assert still.tolist() == [0.0, 0.0, 2.0]
