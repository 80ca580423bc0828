"""A server half that is only ever run forward, for methods of zeroth order on both sides."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from sfl_flower.data import seeded_torch
from sfl_flower.data.labels import wrong_label
from sfl_flower.errors import ConfigError, CutError, WireError
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.split import check_zeroth_order
from sfl_flower.training.device import device_of, full_precision, to_tensor
from sfl_flower.training.modes import kept_buffers
from sfl_flower.zo import Direction, ParameterVector

__all__ = ["ForwardOnlyStrategy", "ForwardOnlyTrainer"]


class ForwardOnlyTrainer:
    """A client's own copy of the server half, and what its loss is at probed parameters.

    Parameters
    ----------
    strategy : SplitStrategy
        Gives the server half that is copied, the task's loss and classes, and the seed.

    Attributes
    ----------
    module : nn.Module
        The copy.
    vector : ParameterVector
        Its trainable parameters.
    """

    def __init__(self, strategy: SplitStrategy) -> None:
        self.module: nn.Module = copy.deepcopy(strategy.server.module)
        self.vector = ParameterVector(self.module)
        self._loss = strategy.task.loss
        self._classes, self._ignore = strategy.task.classes, strategy.task.ignore_label
        self._seed = strategy.config.seed
        self._ran: tuple[int, int, int] | None = None

    def probe(
        self,
        direction: Direction,
        mu: float,
        plus: np.ndarray,
        minus: np.ndarray,
        y: np.ndarray,
        draw: tuple[int, int, int],
    ) -> tuple[float, float]:
        """Return the losses at θ_s + μu on `plus` and at θ_s - μu on `minus`; θ_s is as before.

        Parameters
        ----------
        direction : Direction
            u.
        mu : float
            μ.
        plus, minus : numpy.ndarray
            Smashed data, float32, shape [n, ...].
        y : numpy.ndarray
            Labels, int64, shape [n, ...].
        draw : tuple of int
            Round, partition and step of the mini-batch, see `loss`.

        Raises
        ------
        WireError
            As `loss`.
        """
        with self.vector.probe(direction, mu):
            high = self.loss(plus, y, draw)
        with self.vector.probe(direction, -mu):
            return high, self.loss(minus, y, draw)

    def loss(self, z: np.ndarray, y: np.ndarray, draw: tuple[int, int, int]) -> float:
        """Return the mean loss at the current parameters, without a graph.

        All forwards of a mini-batch have the same dropout masks, and only the first of them moves
        buffers (BatchNorm's running statistics).

        Parameters
        ----------
        z, y : numpy.ndarray
            Smashed data and labels, as for `probe`.
        draw : tuple of int
            Round, partition and step: they name the mini-batch.

        Raises
        ------
        WireError
            If labels or loss cannot be used. The copy is then of no use: its buffers may have
            moved.
        """
        if problem := wrong_label(y, self._classes, self._ignore):
            raise WireError(problem)
        buffers = nullcontext() if draw != self._ran else kept_buffers(self.module)
        self._ran = draw
        device = device_of(self.module)
        try:
            drawn = seeded_torch("server forward", self._seed, *draw)
            with torch.no_grad(), buffers, drawn, full_precision():
                output = self.module(to_tensor(z, device))
                found = float(self._loss(output, to_tensor(y, device)))
        except (RuntimeError, ValueError, IndexError) as error:
            # Shapes are checked before; what is left is a server half that cannot take the batch.
            raise WireError(f"the server half cannot use its batch: {error}.") from error
        if not math.isfinite(found):
            raise WireError("its loss is not finite; lower the learning rates if this repeats.")
        return found


class ForwardOnlyStrategy(SplitStrategy):
    """Base of methods that train both halves by forwards alone."""

    def check(self) -> None:
        """Refuse halves that forwards alone cannot train.

        Raises
        ------
        CutError
            If something in the client half breaks it, or the server half has nothing to train.
        """
        x, _ = self.examples(2)
        check_zeroth_order(self.client_half, example=(x,))
        try:
            ForwardOnlyTrainer(self)
        except ConfigError as error:
            raise CutError(
                f"The server half after '{self.task.cut}' cannot be trained by forwards: {error}"
            ) from error
