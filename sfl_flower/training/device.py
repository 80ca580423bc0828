"""Where a module computes: on the CPU, or on a GPU with CUDA.

Messages, journals and files hold arrays of the CPU whatever computes them, so a client with a GPU
and one without train together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError

__all__ = [
    "CPU", "DEVICES", "PRECISIONS", "device_of", "find_device", "full_precision", "read_only",
    "to_array", "to_tensor",
]  # fmt: skip

DEVICES = ("cpu", "auto", "cuda")
PRECISIONS = ("float32", "bfloat16")
"""What backprop multiplies in; float16 is none of them, for its range needs scaled losses."""
CPU = torch.device("cpu")


def find_device(wanted: str, option: str) -> torch.device:
    """Return the device that an option names.

    Parameters
    ----------
    wanted : str
        One of `DEVICES`: "auto" is the GPU where this process sees one, else the CPU.
    option : str
        The name of the option, for the error.

    Raises
    ------
    ConfigError
        If it is none of them, or "cuda" where torch sees no GPU.
    """
    if wanted not in DEVICES:
        raise ConfigError(f"{option} is '{wanted}'; it must be one of {', '.join(DEVICES)}.")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{option} is cuda, but torch {torch.__version__} sees no GPU in this process; it must "
            "be cpu, or auto, which takes a GPU where there is one."
        )
    return torch.device("cuda", torch.cuda.current_device())


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer, the CPU if it has none."""
    for tensor in chain(module.parameters(), module.buffers()):
        return tensor.device
    return CPU


def to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the values of a tensor as an array; of one on the CPU without a copy."""
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array


def read_only(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return a tensor that is read alone: on the CPU in the array's own memory, else a copy.

    The host does not wait for the copy, which goes through pinned memory where there is a GPU.
    """
    with warnings.catch_warnings():  # that it may not be written into, as nobody does
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_tensor(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return a copy of an array as a tensor on a device."""
    return torch.from_numpy(array.copy()).to(device)


@contextmanager
def full_precision() -> Iterator[None]:
    """Run a block in which a GPU multiplies float32 as float32.

    TF32, torch's default for convolutions, keeps ten bits of a weight: a probe of length μ = 1e-3
    would be lost in its rounding.
    """
    if not torch.cuda.is_available():
        yield
        return
    name, wanted, places = _precision()
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, wanted)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)


def _precision() -> tuple[str, Any, list[Any]]:
    """Return the name of torch's switch, the value for float32, and what has it.

    torch 2.9 brought a second switch, and refuses to read the first where somebody set the second.
    """
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    first = "allow_tf32"
    try:
        getattr(products, first), getattr(cudnn, first)
    except RuntimeError:
        second: Any = cudnn
        return "fp32_precision", "ieee", [products, second.conv, second.rnn]
    return first, False, [products, cudnn]
