"""The words of Philox on a device of torch, with the bits that `WordStream` gives.

A 64-bit word is an int64, whose sums and products wrap around; the upper half of a product of two
words is put together from products of 32-bit halves.  The even and the odd words of a block are two
rows, so that one operation serves both, and all keys of a mini-batch run side by side: some 200
kernels draw everything, however many keys there are.  Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.zo.law import upload
from sfl_flower.zo.words import WORDS_PER_COUNTER

__all__ = ["words_on"]

_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_HALF, _WORD = (1 << 32) - 1, (1 << 64) - 1
_CHUNK = 1 << 17
"""Blocks drawn at a time: enough to fill a GPU, and some 15 MB of intermediate values."""


def words_on(device: torch.device, keys: Sequence[int], start: int, count: int) -> Tensor:
    """Return words ``start .. start + count`` of the streams of some keys.

    Parameters
    ----------
    device : torch.device
        Where they are drawn, the CPU included.
    keys : sequence of int
        128-bit Philox keys, at least one.
    start, count : int
        First word, and how many; neither negative.

    Returns
    -------
    Tensor
        int64 with the bits of the words, shape [keys, count].
    """
    first, last = start // WORDS_PER_COUNTER, -(-(start + count) // WORDS_PER_COUNTER)
    tables = upload(_tables(keys), device)
    room = torch.empty(
        (len(keys), last - first, WORDS_PER_COUNTER), dtype=torch.int64, device=device
    )
    step = max(1, _CHUNK // len(keys))
    for low in range(first, last, step):
        high = min(last, low + step)
        even, odd = _blocks(tables, low, high)
        here = room[:, low - first : high - first]
        here[..., 0::2] = even.permute(1, 2, 0)
        here[..., 1::2] = odd.permute(1, 2, 0)
    return room.flatten(1)[:, start - WORDS_PER_COUNTER * first :][:, :count]


def _tables(keys: Sequence[int]) -> NDArray[np.int64]:
    """Return what the rounds xor and multiply with, shape [16, 2, keys, 1].

    First a key a round, then lower halves, upper halves and the whole of the multipliers, in one
    order of the rows and in the other: a round hands over its words in exchanged rows, and the
    next takes them as they are.
    """
    found = np.empty((_ROUNDS + 6, 2, len(keys), 1), dtype=np.uint64)
    for number, key in enumerate(keys):
        words = [key & _WORD, key >> 64]
        for round in range(_ROUNDS):
            found[round, :, number, 0] = words if round % 2 else words[::-1]
            words = [(word + by) & _WORD for word, by in zip(words, _WEYL, strict=True)]
    for turn, order in enumerate((_MULTIPLIERS, _MULTIPLIERS[::-1])):
        for row, number in enumerate(order):
            at = _ROUNDS + 3 * turn
            found[at, row], found[at + 1, row] = number & _HALF, number >> 32
            found[at + 2, row] = number
    return found.view(np.int64)


def _blocks(tables: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return words 0 and 2, and 1 and 3, of blocks ``first .. last``, each [2, keys, blocks]."""
    shape = 2, tables.shape[2], last - first
    even = torch.zeros(shape, dtype=torch.int64, device=tables.device)
    # Counters are those of numpy, which counts up before it draws.
    even[0] = torch.arange(first + 1, last + 1, dtype=torch.int64, device=tables.device)
    odd = torch.zeros_like(even)
    for round in range(_ROUNDS):
        low, high, whole = tables[_ROUNDS + 3 * (round % 2) :][:3]
        above = _upper(even, low, high)
        # What was word 1 goes with word 2's product, which lies in the other row by now.
        above[0].bitwise_xor_(odd[1])
        above[1].bitwise_xor_(odd[0])
        odd = even.mul_(whole)
        even = above.bitwise_xor_(tables[round])
    return even, odd


def _upper(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the upper 64 bits of x times a number of these halves, both without sign."""
    below, above = x & _HALF, (x >> 32).bitwise_and_(_HALF)
    cross = (below * low).bitwise_right_shift_(32).bitwise_and_(_HALF).add_(above * low)
    middle = (cross & _HALF).add_(below.mul_(high))
    found = above.mul_(high).add_(cross.bitwise_right_shift_(32).bitwise_and_(_HALF))
    return found.add_(middle.bitwise_right_shift_(32).bitwise_and_(_HALF))
