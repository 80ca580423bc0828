"""A second device for machines without one: it computes on the CPU and refuses the CPU's tensors.

What a GPU refuses is refused here, operands on two devices and arrays of what lies on it, and what
it computes has the CPU's bits; so code that trains on it to the CPU's result has moved everything
that must be moved.  It goes by the name of torch's meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["SECOND", "second_device", "waits"]

SECOND = torch.device("meta")
_ATEN = torch.ops.aten
# What moves values between devices, and what takes rows by places that lie on the CPU.
_CROSSES = (_ATEN._to_copy, _ATEN.copy_, _ATEN.index, _ATEN.set_data)
# What gives the host a number of the device, or a tensor whose size is one.
_TELLS = (
    _ATEN._local_scalar_dense, _ATEN.equal, _ATEN.is_nonzero, _ATEN.nonzero, _ATEN.masked_select,
    _ATEN._unique2, _ATEN.repeat_interleave,
)  # fmt: skip
_seen: list[str] | None = None


class _There(Tensor):
    """A tensor on the second device."""

    _here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        made: _There = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, layout=here.layout, device=SECOND,
        )  # fmt: skip
        made._here = here
        return made

    def __init__(self, here: Tensor) -> None:
        pass

    @property
    def data(self) -> Tensor:
        """The values, without a graph; setting them lets this tensor share another's memory."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, _There) and value.shape == self.shape
        self._here = value._here

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Intercepted(TorchDispatchMode):
    """Sees what is made on the second device, or moved there from the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    there = {id(leaf._here): leaf for leaf in flat if isinstance(leaf, _There)}
    device = kwargs.get("device")
    to_second = device is not None and torch.device(device) == SECOND
    if not there and not to_second:
        return func(*args, **kwargs)
    here = [leaf for leaf in flat if isinstance(leaf, Tensor) and not isinstance(leaf, _There)]
    if _seen is not None and _waits(func.overloadpacket, args, kwargs, here):
        _seen.append(str(func))
    if there and any(leaf.dim() for leaf in here) and func.overloadpacket not in _CROSSES:
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func}.")
    plain = tree_map(lambda leaf: leaf._here if isinstance(leaf, _There) else leaf, (args, kwargs))
    if to_second:
        plain[1]["device"] = torch.device("cpu")
    found = func(*plain[0], **plain[1])
    if device is not None and not to_second:
        return found
    if func.overloadpacket is _ATEN.copy_ and not isinstance(args[0], _There):
        return args[0]

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return there[id(leaf)] if id(leaf) in there else _There(leaf)

    return tree_map(wrapped, found)


@contextmanager
def second_device() -> Iterator[Callable[[str, str], torch.device]]:
    """Run a block in which ``meta`` is a device that computes; gives what finds devices.

    The function given stands in for `sfl_flower.training.device.find_device` on a machine with a
    GPU.
    """

    def find(wanted: str, option: str) -> torch.device:
        return torch.device("cpu") if wanted == "cpu" else SECOND

    with _Intercepted():  # type: ignore[no-untyped-call]
        yield find


def _waits(packet: Any, args: Any, kwargs: dict[str, Any], here: list[Tensor]) -> bool:
    """Tell whether the host would wait for a GPU that did this; `here` are its tensors of the CPU.

    Torch waits for every copy to the host, and for one from the host unless it is told not to.
    """
    if packet is _ATEN.index:
        places = [leaf for leaf in args[1] if leaf is not None]
        return bool(here) or any(leaf.dtype in (torch.bool, torch.uint8) for leaf in places)
    if packet is _ATEN._to_copy:
        device = kwargs.get("device")
        to_host = device is not None and torch.device(device) != SECOND
        return to_host or (bool(here) and not kwargs.get("non_blocking"))
    if packet is _ATEN.copy_:
        at_once = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return not isinstance(args[0], _There) or (bool(here) and at_once and args[1].dim() > 0)
    return packet in _TELLS


@contextmanager
def waits() -> Iterator[list[str]]:
    """Note, for the length of a block on the second device, what a host would wait for."""
    global _seen
    before, _seen = _seen, []
    try:
        yield _seen
    finally:
        _seen = before
