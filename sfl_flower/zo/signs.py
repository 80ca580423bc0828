"""Signs from bits: the arithmetic of ±1 directions, without a product.

Element ``8 j + b`` has its sign in bit ``b`` of byte ``j``; bit 1 means minus. On the CPU a byte
selects a row of a table that holds the 8 signed constants: one array operation writes 8
elements per look-up, and the bits keep their natural order. (Shifting words and flipping the
sign bit costs the same, and needs a permuted layout.)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SignWriter", "expand_torch"]

F32 = NDArray[np.float32]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = np.subtract(np.float32(1.0), np.multiply(np.float32(2.0), _BITS.astype(np.float32)))


class SignWriter:
    """Writes ``±constant`` for packed sign bits.

    Parameters
    ----------
    constant
        The magnitude (and overall sign); row ``b`` of the table is ``±constant`` for byte ``b``.
    index
        Buffer for as many indices as one call of `write` has bytes; may be shared.
    """

    def __init__(self, constant: np.float32, index: NDArray[np.intp]) -> None:
        self._table = np.multiply(_SIGNS, constant)
        self._index = index

    def write(self, packed: NDArray[np.uint8], out: F32, skip: int = 0) -> None:
        """Fill ``out``, whose first element is bit ``skip`` of ``packed[0]``."""
        index = self._index[: len(packed)]
        index[:] = packed
        if skip == 0 and len(out) == 8 * len(packed):
            self._table.take(index, axis=0, out=out.reshape(-1, 8), mode="clip")
        else:
            rows = self._table.take(index, axis=0, mode="clip")
            out[:] = rows.reshape(-1)[skip : skip + len(out)]


def expand_torch(packed: Tensor, constant: float) -> Tensor:
    """Return ``±constant`` for the 8 bits of each byte: float32, on the device of ``packed``."""
    shifts = torch.arange(8, dtype=torch.int32, device=packed.device)
    bits = (packed.to(torch.int32).unsqueeze(1) >> shifts) << 31
    pattern = torch.tensor(constant, dtype=torch.float32, device=packed.device).view(torch.int32)
    return torch.bitwise_xor(bits, pattern).view(torch.float32).reshape(-1)
