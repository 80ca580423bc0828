"""A state dict as a few flat arrays: one per dtype, in the order of the sorted names.

Both sides know the names and shapes from their own copy of the model, so only values travel.
Tensors that never change and that only the server can compute are `Carried`: sent once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import WireError

__all__ = [
    "WEIGHT_DTYPES",
    "Carried",
    "Packed",
    "pack_state",
    "packed_digest",
    "state_bytes",
    "unpack_state",
]

Packed = Mapping[str, np.ndarray]
"""What `pack_state` gives."""

_WIRE: dict[torch.dtype, torch.dtype] = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float16,
    torch.bfloat16: torch.int16,  # numpy has no bfloat16: the bits travel as int16
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.int16: torch.int16,
    torch.int8: torch.int8,
    torch.uint8: torch.uint8,
    torch.bool: torch.uint8,
}
WEIGHT_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
"""Dtypes that packed weights have on the wire."""


def _groups(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(state):
        if state[name].dtype not in _WIRE:
            raise WireError(
                f"The tensor '{name}' has dtype {state[name].dtype}, which does not travel; "
                f"use one of {', '.join(str(d).removeprefix('torch.') for d in _WIRE)}."
            )
        groups.setdefault(str(state[name].dtype).removeprefix("torch."), []).append(name)
    return groups


def state_bytes(state: Mapping[str, Tensor]) -> int:
    """Count the bytes of all tensors of a state dict, parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def pack_state(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Lay a state dict out as flat arrays.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        Tensors of any shape.

    Returns
    -------
    dict[str, numpy.ndarray]
        One 1-D array per dtype, keyed by the dtype's name in torch.
    """
    packed = {}
    for dtype, names in _groups(state).items():
        flat = torch.cat([state[name].detach().cpu().reshape(-1) for name in names])
        wire = _WIRE[flat.dtype]
        same_size = flat.dtype in (torch.bfloat16, torch.bool)
        packed[dtype] = (flat.view(wire) if same_size else flat).numpy()
    return packed


def unpack_state(packed: Mapping[str, np.ndarray], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rebuild a state dict; the exact inverse of `pack_state`.

    Parameters
    ----------
    packed : Mapping[str, numpy.ndarray]
        Flat arrays as they arrived.
    like : Mapping[str, Tensor]
        The receiver's own tensors, which give names, shapes and dtypes.

    Raises
    ------
    WireError
        If an array is missing, unknown, or has another size than the receiver's model.
    """
    groups = _groups(like)
    if set(packed) != set(groups):
        raise WireError(
            f"The weights hold the dtypes {sorted(packed)}, this model has {sorted(groups)}; "
            "the two sides run different models."
        )
    state: dict[str, Tensor] = {}
    for dtype, names in groups.items():
        sizes = [math.prod(like[name].shape) for name in names]
        target = like[names[0]].dtype
        if packed[dtype].shape != (sum(sizes),):
            raise WireError(
                f"The weights hold {packed[dtype].size} values of {dtype}, this model has "
                f"{sum(sizes)}; the two sides run different models."
            )
        flat = torch.from_numpy(packed[dtype].copy())
        if flat.dtype != _WIRE[target]:
            raise WireError(f"The weights hold {dtype} as {flat.dtype}; they travel as {target}.")
        flat = flat.view(target) if flat.dtype != target else flat
        if target == torch.bfloat16 and not torch.isfinite(flat).all():  # unseen among integers
            raise WireError("The weights hold a bfloat16 that is not finite.")
        for name, part in zip(names, torch.split(flat, sizes), strict=True):
            state[name] = part.reshape(like[name].shape)
    return state


@dataclass(frozen=True)
class Carried:
    """What is sent once to each client, or its name alone.

    A request names it by its digest, among its terms.  It comes along itself where the client is
    not known to hold it; one that lost it says so as for lost terms, and gets the whole request.

    Attributes
    ----------
    digest : str
        `packed_digest` of the arrays.
    arrays : Mapping[str, numpy.ndarray]
        What `pack_state` made of the tensors; empty in a request to a client that holds them.
    """

    digest: str
    arrays: Packed = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Carried | None:
        """Return tensors as they are carried, None for no tensor."""
        packed = pack_state(state)
        return cls(packed_digest(packed), packed) if packed else None


def packed_digest(packed: Packed) -> str:
    """Return the digest of packed tensors to the bit, 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for key in sorted(packed):
        value = np.ascontiguousarray(packed[key])
        digest.update(f"{key} {value.size};".encode())
        digest.update(value.astype(value.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()
