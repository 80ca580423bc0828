"""Buffers of the model that the server alone computes, before the first round."""

from __future__ import annotations

import torch
from torch import nn

from sfl_flower.errors import ConfigError
from sfl_flower.task import SplitTask
from sfl_flower.training.fields import called

__all__ = ["put_first_buffers"]


def put_first_buffers(task: SplitTask, *modules: nn.Module) -> None:
    """Set the buffers for which the task names first values, in place; clients get them from here.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    *modules : nn.Module
        Halves of its model, the whole or a head made of its layers; what a module does not have is
        passed over.

    Raises
    ------
    ConfigError
        The task's function fails, or a value has another shape than the buffer.
    """
    first = task.first_buffers
    if first is None:
        return
    said = f"first_buffers() of task {task.name!r}"
    values = task.memo("first buffers", lambda: called(first, said, ConfigError))
    for module in modules:
        for name, buffer in module.named_buffers():
            if name not in values:
                continue
            if values[name].shape != buffer.shape:
                raise ConfigError(
                    f"{said} gives '{name}' the shape {list(values[name].shape)}; the model's has "
                    f"{list(buffer.shape)}."
                )
            with torch.no_grad():
                buffer.copy_(values[name])
