"""Walks of a round: where they end and what their mean is by hand, and their bytes."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.errors import JournalError, WireError
from sfl_flower.server.mean import Mean
from sfl_flower.zo import Directions, Guide, OptimizerSpec, StepRule, client_stream, step_keys
from sfl_flower.zo.walks import LocalWalk, RoundOfWalks, Walking

SHAPES = ((3, 4), (5,))
SIZE = 17
MU = 0.5
START = torch.linspace(-1, 1, SIZE)
WALKING = Walking("rademacher", SHAPES, OptimizerSpec("sgd"), StepRule(MU), probes=2)


def walk(client: int, steps: int = 2, share: float = 1.0, columns: int = 2) -> LocalWalk:
    scalars = np.random.default_rng(client).standard_normal((steps, columns)).astype(np.float32)
    taken = np.ones(steps + 1, np.uint8)
    taken[1] = 0  # the second step was skipped
    return LocalWalk(bytes([client]) * 16, client_stream(client), share, scalars, taken)


def directions(of: LocalWalk, round: int, step: int) -> list[torch.Tensor]:
    own = Directions(of.key, "rademacher", SHAPES)
    return [own.of(key).values() for key in step_keys(round, step, of.stream, 2)]


def test_a_walk_ends_where_its_scalars_say() -> None:
    """θ - lr Σ_s 1/(P μ) Σ_p v_sp u_sp, of the steps that were taken: 0 and 2."""
    own, before = walk(3), START.clone()
    end = WALKING.end(START, own, round=7, lr=0.1)
    by_hand = START.double()
    for row, step in zip(own.scalars, (0, 2), strict=True):
        for v, u in zip(row.tolist(), directions(own, 7, step), strict=True):
            by_hand = by_hand - 0.1 * v / (2 * MU) * u.double()
    assert torch.allclose(end.double(), by_hand, atol=1e-6)
    assert torch.equal(START, before)


def test_the_mean_is_the_servers_mean_of_states_to_the_bit() -> None:
    walks = RoundOfWalks(7, 0.1, (walk(0, share=3.0), walk(5, share=4.0), walk(2, share=10.0)))
    ends = [{"x": WALKING.end(START, each, 7, 0.1)} for each in walks.walks]
    found = WALKING.mean(START, walks)
    assert torch.equal(found, Mean().states(ends, [3.0, 4.0, 10.0])["x"])
    by_hand = sum(w * end["x"].double() for w, end in zip((3, 4, 10), ends, strict=True)) / 17
    assert torch.allclose(found.double(), torch.as_tensor(by_hand), atol=1e-6)


def test_walks_come_back_from_their_bytes() -> None:
    guide = Guide(SIZE, b"\x05\x01\x00", np.ones(5, np.float32))
    walks = RoundOfWalks(7, 0.1, (walk(0, columns=3), walk(5, 3, 2.5, 3)), guide)
    data = walks.encode()
    back = RoundOfWalks.decode(data)
    assert (back.round, back.lr, back.steps, back.guide) == (7, 0.1, 5, guide)
    for one, other in zip(walks.walks, back.walks, strict=True):
        assert (one.key, one.stream, one.share) == (other.key, other.stream, other.share)
        assert np.array_equal(one.scalars, other.scalars)
        assert np.array_equal(one.taken, other.taken)
    assert back.encode() == data
    assert RoundOfWalks.bytes_of(data) == {
        "scalars": 4 * (2 + 3) * 3,
        "keys": 2 * (16 + 4) + guide.nbytes,
    }
    # A head of 28, and of each walk 32 and a byte that says which steps were taken.
    assert len(data) == 28 + 2 * 33 + 60 + guide.nbytes


PLAIN = RoundOfWalks(7, 0.1, (walk(0), walk(5)))


def put(at: int, form: str, value: Any) -> bytes:
    data = bytearray(PLAIN.encode())
    struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short before the end of their head"),
        (PLAIN.encode()[:40], "cut short"),
        (PLAIN.encode()[:-1], "cut short by 1 bytes"),
        (PLAIN.encode() + b"x", "1 bytes too many"),
        (put(0, "<4s", b"SFLe"), "not walks of format 1"),
        (put(4, "<B", 9), "not walks of format 1"),
        (put(5, "<B", 1), "A guide is cut short"),
        (put(5, "<B", 2), "not walks of format 1"),
        (put(12, "<I", 0), "declare 0 clients"),
        (put(12, "<I", 2**32 - 1), "cut short"),
        (put(16, "<I", 0), "0 scalars a step"),
        (put(16, "<I", 2**20 + 1), "scalars a step"),
        (put(20, "<d", float("nan")), "a rate of nan"),
        (put(20, "<d", -1.0), "a rate of -1"),
        (put(48, "<d", 0.0), "counts nothing in the mean"),
        (put(48, "<d", float("inf")), "counts nothing in the mean"),
        (put(56, "<I", 0), "declares 0 steps"),
        (put(56, "<I", 10**7), "declares 10000000 steps"),
        (put(61, "<f", float("nan")), "scalar that is not finite"),
    ],
)
def test_bytes_that_are_no_walks_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        RoundOfWalks.decode(data)


def test_walks_that_lead_nowhere_are_refused() -> None:
    far = replace(walk(0), scalars=np.full((2, 2), 3e38, np.float32))
    with pytest.raises(JournalError, match="parameters that are not finite"):
        WALKING.end(START, far, 7, 1e6)
    with pytest.raises(JournalError, match=r"scalars of shape \(2, 2\) are not those of 2 steps"):
        WALKING.end(START, walk(0), 7, 0.1, Guide(SIZE, b"\0" * 3, np.ones(5, np.float32)))
    other = RoundOfWalks(7, 0.1, (walk(0, columns=3),), Guide(9, b"\0\0", np.ones(2, np.float32)))
    with pytest.raises(JournalError, match="a direction over other parameters"):
        WALKING.mean(START, other)
