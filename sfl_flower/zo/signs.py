"""Signs from bits: the arithmetic of ±1 directions, without a product.

Element ``8 j + b`` has its sign in bit ``b`` of byte ``j``; bit 1 means minus.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["expand", "expand_torch", "sign_table"]

F32 = NDArray[np.float32]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = np.subtract(np.float32(1.0), np.multiply(np.float32(2.0), _BITS.astype(np.float32)))


def sign_table(constant: np.float32) -> F32:
    """Row ``b`` holds the 8 values ``±constant`` that byte ``b`` stands for; shape [256, 8]."""
    return np.multiply(_SIGNS, constant)


def expand(packed: NDArray[np.uint8], constant: np.float32, out: F32, skip: int = 0) -> None:
    """Write ``±constant`` into ``out``, whose first element is bit ``skip`` of ``packed[0]``."""
    table, index = sign_table(constant), packed.astype(np.intp)
    if skip == 0 and len(out) == 8 * len(packed):
        np.take(table, index, axis=0, out=out.reshape(-1, 8), mode="clip")
    else:
        out[:] = np.take(table, index, axis=0, mode="clip").reshape(-1)[skip : skip + len(out)]


def expand_torch(packed: Tensor, constant: float) -> Tensor:
    """Return ``±constant`` for the 8 bits of each byte: float32, on the device of ``packed``."""
    shifts = torch.arange(8, dtype=torch.int32, device=packed.device)
    bits = (packed.to(torch.int32).unsqueeze(1) >> shifts) << 31
    pattern = torch.tensor(constant, dtype=torch.float32, device=packed.device).view(torch.int32)
    return torch.bitwise_xor(bits, pattern).view(torch.float32).reshape(-1)
