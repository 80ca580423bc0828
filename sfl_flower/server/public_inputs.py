"""Inputs that are nobody's secret, which the server may run through a client half."""

from __future__ import annotations

import torch
from torch import Tensor

from sfl_flower.data import generator
from sfl_flower.errors import ConfigError
from sfl_flower.task import SplitTask

__all__ = ["NOISE", "noise_inputs", "public_inputs"]

NOISE = 64
"""Inputs of noise that stand in for public samples."""


def public_inputs(task: SplitTask) -> Tensor:
    """Return the inputs of the task's public samples; labels, where they have any, are not used."""
    return task.batch(task.samples("public"), slice(None))[0]


def noise_inputs(
    task: SplitTask, purpose: str, seed: int, because: str, instead: str = ""
) -> Tensor:
    """Return normal noise of the shape of the task's inputs.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    purpose : str
        Names the stream of the noise.
    seed : int
        Decides it.
    because : str
        Why inputs are asked for, for the error.
    instead : str
        What to set where the task has public samples, for the error.

    Raises
    ------
    ConfigError
        If the inputs are whole numbers, for which no noise can stand in.
    """
    x, _ = task.batch(task.samples("test"), slice(0, 2))
    if not x.is_floating_point():
        give = "give it public=, a function that returns Samples which are nobody's secret"
        remedy = instead if instead and task.public is not None else give
        raise ConfigError(f"{because}, nor can noise stand in for inputs of {x.dtype}; {remedy}.")
    drawn = generator(purpose, seed).standard_normal((NOISE, *x.shape[1:]))
    return torch.from_numpy(drawn).to(x.dtype)
