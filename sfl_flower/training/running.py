"""How a module that is trained by backprop runs: in which precision, and compiled or not."""

from __future__ import annotations

from logging import WARNING, getLogger
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sfl_flower.training.device import device_of
from sfl_flower.training.modes import buffers_put_back

__all__ = ["Running"]

_log = getLogger("flwr")


class Running(nn.Module):
    """A module as a run wants it run; weights, buffers and modes are the module's own.

    Parameters
    ----------
    module : nn.Module
        What is run. Its state_dict is asked of it, never of this.
    precision : {"float32", "bfloat16"}
        With bfloat16 torch's autocast chooses by operation: products in bfloat16, norms and losses
        in float32. What comes out is float32.
    compiled : bool
        Whether `torch.compile` makes a program of it at its first batch, and another where the
        number of samples changes. Where that fails, it says so once and the module runs as it is.
    """

    def __init__(
        self, module: nn.Module, precision: str = "float32", compiled: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self._low = precision == "bfloat16"
        self._program: Any = _program(module) if compiled else None

    @property
    def compiled(self) -> bool:
        """Whether a compiled program runs, as far as is known."""
        return self._program is not None

    def forward(self, x: Tensor) -> Any:
        """Return what the module gives, float32 where it is a floating-point tensor."""
        if not self._low:
            return self._run(x)
        with torch.autocast(device_of(self.module).type, dtype=torch.bfloat16):
            output = self._run(x)
        return tree_map(_as_float32, output)

    def _run(self, x: Tensor) -> Any:
        if self._program is None:
            return self.module(x)
        from torch._dynamo.exc import TorchDynamoException  # seconds; few runs need it

        try:
            with buffers_put_back(self.module):
                return self._program(x)
        except TorchDynamoException as error:
            # Raises where the batch is at fault: then the program stays.
            output = self.module(x)
            self._program = None
            first = str(error).strip().partition("\n")[0]
            _log.log(
                WARNING,
                "The server half runs uncompiled, since torch cannot compile it here: %s. "
                "torch.compile needs a C++ compiler (g++ or clang++) on the server; install one, "
                "or leave server-compile false.",
                first.rstrip("."),
            )
            return output


def _program(module: nn.Module) -> Any:
    def run(x: Tensor) -> Any:
        return module(x)

    # torch keeps programs by code object, eight of each, and all halves share theirs.
    run.__code__ = run.__code__.replace()
    return torch.compile(run)


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
