"""The server half: trained by backprop, gives cut gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig
from sfl_flower.data import seeded_torch
from sfl_flower.data.labels import wrong_label
from sfl_flower.errors import WireError
from sfl_flower.server.tensors import load_trained, trained_tensors, under
from sfl_flower.training.device import device_of, to_array, to_tensor
from sfl_flower.training.modes import buffers_put_back
from sfl_flower.training.optim import make_optimizer
from sfl_flower.wire.encodings import encoding_of

__all__ = ["Gradients", "Trainer"]

_PREFIX = "server."


@dataclass(frozen=True)
class Gradients:
    """What backprop through the server half gives for one mini-batch.

    Attributes
    ----------
    lam : numpy.ndarray
        λ, the gradient of the mini-batch's mean loss at z, float32, shape of z.
    loss : float
        The mean loss.
    weights : list of Tensor
        Its gradient at each trainable parameter.
    """

    lam: np.ndarray
    loss: float
    weights: list[Tensor]


class Trainer:
    """The server half with its optimiser.

    Parameters
    ----------
    module : nn.Module
        The server half.
    loss : callable
        Mean loss of outputs and labels.
    classes : int
        Labels lie in [0, classes).
    config : RunConfig
        Names the optimiser.
    ignore : int, optional
        The label that does not count.
    encoding : str
        How λ travels to clients; a mini-batch whose λ cannot is refused like one without a finite
        loss.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        classes: int,
        config: RunConfig,
        ignore: int | None = None,
        encoding: str = "float32",
    ) -> None:
        self.module = module
        self._loss = loss
        self._classes, self._ignore = classes, ignore
        self._config = config
        self._encoding = encoding_of(encoding)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(
            self._parameters,
            config.server_optimizer,
            config.server_lr,
            config.server_momentum,
            config.server_weight_decay,
        )
        self._sum: list[Tensor] | None = None

    def begin(self, round: int) -> None:
        """Set the learning rate of a round, before its first step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.server_rate(round)

    def check_labels(self, y: np.ndarray) -> None:
        """Raise `WireError` if a label lies outside the classes, or a sample has none."""
        if problem := wrong_label(y, self._classes, self._ignore):
            raise WireError(problem)

    def gradients(self, z: np.ndarray, y: np.ndarray, draw: tuple[int, int, int]) -> Gradients:
        """Run one mini-batch forward and back; neither weights nor sums change.

        Every module runs in the mode in which the task built it.

        Parameters
        ----------
        z : numpy.ndarray
            Smashed data, float32, shape [n, ...].
        y : numpy.ndarray
            Labels, int64, shape [n, ...].
        draw : tuple of int
            Round, partition and step of the mini-batch: they decide the dropout masks.

        Raises
        ------
        WireError
            If the labels, or the loss and gradients they give, cannot be used; buffers are then
            as they were.
        """
        self.check_labels(y)
        device = device_of(self.module)
        cut = to_tensor(z, device).requires_grad_()
        with buffers_put_back(self.module):
            try:
                with seeded_torch("server forward", self._config.seed, *draw):
                    loss = self._loss(self.module(cut), to_tensor(y, device))
            except (RuntimeError, ValueError, IndexError) as error:
                # Shapes are checked before; what is left is a server half that cannot take the
                # batch.
                one = (
                    " BatchNorm cannot train on one sample: give every client at least two, set "
                    "batch-size to at least 2, or freeze it."
                )
                raise WireError(
                    f"the server half cannot use its batch: {error}.{one if len(y) == 1 else ''}"
                ) from error
            lam, *weights = torch.autograd.grad(
                loss, [cut, *self._parameters], allow_unused=True, materialize_grads=True
            )
            norms = torch._foreach_norm(weights) if weights else ()  # not finite if an element is
            buffers = [b for b in self.module.buffers() if b.is_floating_point()]
            parts = (loss.detach(), lam, *norms, *buffers)
            if not all(bool(torch.isfinite(part).all()) for part in parts):
                raise WireError(
                    "its loss or a gradient is not finite; lower the learning rates if this "
                    "repeats."
                )
            sent = to_array(lam)
            self._encoding.encode(sent, "gradients")
        return Gradients(sent, float(loss.detach()), weights)

    def add(self, gradients: Iterable[Gradients], weight: float) -> None:
        """Add gradients of mini-batches, times a weight, to what the next `step` follows."""
        for found in gradients:
            if weight != 1.0:
                torch._foreach_mul_(found.weights, weight)
            if self._sum is None:
                self._sum = found.weights
            else:
                torch._foreach_add_(self._sum, found.weights)

    def step(self, total: float = 1.0) -> None:
        """Take one optimiser step along the sum added since the last, divided by `total`."""
        if self._sum is None:
            return
        gradients, self._sum = self._sum, None
        if total != 1.0:
            torch._foreach_div_(gradients, total)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and optimiser state as named tensors, for a checkpoint."""
        found = trained_tensors(self.module, self.optimizer)
        return {f"{_PREFIX}{name}": value for name, value in found.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put weights and optimiser state back.

        Raises
        ------
        TrainingError
            If the tensors belong to another model.
        """
        load_trained(self.module, self.optimizer, under(_PREFIX, tensors))
