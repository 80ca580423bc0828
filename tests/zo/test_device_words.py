"""Words and values as a device makes them: the bits of numpy's, read here on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.zo import LAWS, Directions, Guide, Key, run_key
from sfl_flower.zo import device_words as module
from sfl_flower.zo.device_normals import normals_on
from sfl_flower.zo.device_words import words_on
from sfl_flower.zo.gaussian import normals
from sfl_flower.zo.words import WordStream
from tests.second_device import SECOND, second_device
from tests.zo.test_directions import philox_block

CPU = torch.device("cpu")
RUN = run_key("device", 0)
SHAPES = [(7, 5, 3), (11,), (), (0, 4), (1, 40), (40, 1), (130, 61)]
SIZE = 105 + 11 + 1 + 40 + 40 + 130 * 61


def unsigned(words: torch.Tensor) -> np.ndarray:
    return words.numpy().view(np.uint64)


@pytest.mark.parametrize(
    ("key", "block"),
    # Words of the paper's own generator, written out in test_directions; the last two keys make
    # every half of a product overflow.
    [(0, 1), (1 << 127, 2), ((1 << 128) - 1, (1 << 31) + 3), (0x0123456789ABCDEF << 64, 1 << 33)],
)
def test_a_block_is_that_of_the_paper(key: int, block: int) -> None:
    found = unsigned(words_on(CPU, [key], 4 * (block - 1), 4))[0]
    assert found.tolist() == philox_block((key & ((1 << 64) - 1), key >> 64), block)


def test_the_first_words_of_key_zero_are_known() -> None:
    # As numpy.random.Philox(key=0).random_raw(4) gives them.
    assert unsigned(words_on(CPU, [0], 0, 4))[0].tolist() == [
        213000021201967259, 4455796210202625458, 2055444239878205049, 10411612076246414556,
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.integers(0, (1 << 128) - 1), min_size=1, max_size=4),
    start=st.one_of(st.integers(0, 40), st.integers(0, 1 << 40)),
    count=st.integers(1, 70),
    chunk=st.sampled_from([1, 3, 1 << 17]),
)
def test_words_are_those_of_numpy_from_anywhere(
    keys: list[int], start: int, count: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = words_on(CPU, keys, start, count)
    assert found.shape == (len(keys), count)
    for row, key in zip(unsigned(found), keys, strict=True):
        assert np.array_equal(row, WordStream(key, start).read(count))


def test_normal_values_of_every_kind_of_word_are_those_of_numpy() -> None:
    edges = np.array([0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1], dtype=np.uint32)
    # 0.075 and 0.925 part the branches of the quantile.
    near = [int(p * 2**32) + step for p in (0.075, 0.925) for step in range(-3, 4)]
    many = WordStream(5).read(50_000).view(np.uint32)
    words = np.concatenate([edges, np.array(near, dtype=np.uint32), many])
    found = normals_on(torch.from_numpy(words.view(np.int32))).numpy()
    assert found.tobytes() == normals(words).tobytes()


@pytest.mark.parametrize("law", LAWS)
def test_a_mini_batch_drawn_at_once_has_the_bits_of_its_directions(law: str) -> None:
    directions = Directions(RUN, law, SHAPES)
    with second_device():
        there = [u.on(SECOND).cpu() for u in directions.of_step(3, 1, 2, 3)]
    for probe, found in enumerate(there):
        assert torch.equal(found, directions.of(Key(3, 1, 2, probe)).values())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("start", "stop"), [(0, SIZE), (1, 5), (33, 4000), (SIZE - 3, SIZE)])
def test_any_piece_on_a_device_has_the_bits_of_the_cpu(law: str, start: int, stop: int) -> None:
    direction = Directions(RUN, law, SHAPES).of(Key(1))
    base = torch.linspace(-1, 1, stop - start)
    here, there = torch.empty_like(base), torch.empty_like(base)
    direction.add_to(here, base, -3e-3, start)
    with second_device():
        out, moved = there.to(SECOND), base.to(SECOND)
        direction.add_to(out, moved, -3e-3, start)
        there = out.cpu()
    assert torch.equal(here, there)


@pytest.mark.parametrize("block", [1 << 20, 64])
def test_values_that_are_made_block_by_block_are_the_same(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfl_flower.zo.normal_laws._DEVICE_BLOCK", block)
    for law in ("gaussian", "sphere"):
        direction = Directions(RUN, law, [(1000,)]).of(Key(2))
        with second_device():
            found = direction.on(SECOND).cpu()
        assert torch.equal(found, direction.values())


def test_a_guide_on_a_device_has_the_bits_of_the_cpu() -> None:
    generator = np.random.default_rng(0)
    shapes = ((4, 9), (13,), (2, 3, 5))
    guide = Guide.towards(generator.standard_normal(79).astype(np.float32), shapes)
    assert guide is not None
    direction = Directions(RUN, "rademacher", shapes).along(guide)
    for start, stop in ((0, 79), (3, 50), (36, 49), (70, 79)):
        out = np.empty(stop - start, dtype=np.float32)
        guide.values(shapes).write(out, start, np.float32(0.3))
        with second_device():
            found = guide.values(shapes).on(SECOND, start, stop, np.float32(0.3)).cpu()
        assert found.numpy().tobytes() == out.tobytes()
    with second_device():
        whole = direction.on(SECOND).cpu()
    assert torch.equal(whole, direction.values())


def test_factors_on_a_device_are_those_of_the_cpu() -> None:
    direction = Directions(RUN, "rank_one", SHAPES).of(Key(4))
    with second_device():
        made: Any = direction.factors_on(SECOND)
        there = [(a if a is None else a.cpu(), b.cpu()) for a, b in made]
    here: Any = direction.factors()
    for factors, (rows, columns) in zip(here, there, strict=True):
        assert np.array_equal(factors.columns, columns.numpy())
        assert (factors.rows is None) == (rows is None)
        assert rows is None or np.array_equal(factors.rows, rows.numpy())
    assert Directions(RUN, "rademacher", SHAPES).of(Key(4)).factors_on(CPU) is None


def test_the_words_of_a_mini_batch_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def noted(device: torch.device, keys: Any, start: int, count: int) -> torch.Tensor:
        drawn.append(len(keys))
        return words_on(device, keys, start, count)

    monkeypatch.setattr(module, "words_on", noted)
    us = Directions(RUN, "rademacher", [(640,)]).of_step(0, 0, 1, 4)
    with second_device():
        for _ in range(2):
            for u in us:
                u.on(SECOND)
    assert drawn == [4]
