"""The server half of clients that keep its last layers: what is run is the body alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig
from sfl_flower.data import seeded_torch
from sfl_flower.errors import WireError
from sfl_flower.server.trainer import Batch, Gradients, Trainer
from sfl_flower.training.device import device_of, to_array, to_tensor
from sfl_flower.training.modes import kept_buffers

__all__ = ["BodyTrainer", "TailGradients"]

Draw = tuple[int, int, int]
"""Round, partition and step of a mini-batch."""


@dataclass(frozen=True)
class TailGradients:
    """What a client says of a mini-batch, beside the gradient at its features.

    Attributes
    ----------
    loss : float
        Its mean loss.
    weights : Mapping[str, Tensor]
        Its gradient at the tail's parameters, by their names.
    """

    loss: float
    weights: Mapping[str, Tensor]


class BodyTrainer(Trainer):
    """Trains a server half whose tail is run elsewhere.

    In place of labels a mini-batch has the gradient g at its features h: the body is led back from
    the linear form ``<g, h>``, whose gradient at h is g, whatever the loss is.

    Parameters
    ----------
    module : nn.Module
        The server half, body and tail.
    body : nn.Module
        Its first part, which uses the half's own parameters.
    config : RunConfig
        Names the optimiser.
    encoding : str
        How λ travels.
    """

    def __init__(
        self, module: nn.Module, body: nn.Module, config: RunConfig, encoding: str
    ) -> None:
        super().__init__(module, _along, 1, config, None, encoding, True, body)
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._told: dict[Draw, TailGradients] = {}

    def tell(self, told: Mapping[Draw, TailGradients]) -> None:
        """Say what clients found at their tails; what was told before is forgotten."""
        self._told = dict(told)

    def features(self, z: np.ndarray, draw: Draw) -> np.ndarray:
        """Return what the body gives for smashed data, float32 [n, ...]; buffers stay.

        Raises
        ------
        WireError
            If the body cannot take the batch, or gives something that is not finite.
        """
        with (
            torch.no_grad(),
            kept_buffers(self.running.module),
            seeded_torch("server forward", self._config.seed, *draw),
        ):
            try:
                found = self.running(to_tensor(z, device_of(self.module)))
            except (RuntimeError, ValueError, IndexError) as error:
                raise WireError(f"the server half cannot use its batch: {error}.") from error
        if not bool(torch.isfinite(found).all()):
            raise WireError(
                "its features are not finite; lower the learning rates if this repeats."
            )
        return to_array(found)

    def check_labels(self, y: np.ndarray) -> None:
        """Do nothing: in place of labels there are gradients, checked where they came in."""

    def together(
        self, batches: Sequence[Batch], shares: Sequence[float] = (1.0,)
    ) -> tuple[list[Gradients], list[Tensor]]:
        """Do as `Trainer.together`; gradients at the tail and losses are those of the clients."""
        found, weights = super().together(batches, shares)
        told = [self._told[draw] for _, _, draw in batches]
        for at, name in enumerate(self._names):
            for own, share in zip(told, shares, strict=True):
                if name in own.weights:
                    weights[at] = weights[at] + share * own.weights[name].to(weights[at])
        return [
            replace(part, loss=own.loss) for part, own in zip(found, told, strict=True)
        ], weights


def _along(features: Tensor, gradient: Tensor) -> Tensor:
    """Return ``<g, h>``, whose gradient at h is g."""
    return (features * gradient).sum()
