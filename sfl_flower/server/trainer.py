"""The server half: trained by backprop, gives cut gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from sfl_flower.training.running import Running
from sfl_flower.wire.encodings import encoding_of

__all__ = ["Batch", "Gradients", "Trainer"]

Batch = tuple[np.ndarray, np.ndarray, tuple[int, int, int]]
"""Smashed data, labels, and the round, partition and step that name them."""

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
    as_told : bool
        Whether it runs in the configuration's `server_precision`, and compiled where that says so;
        otherwise in float32 and as it is.
    runs : nn.Module, optional
        The part of the module that is run here; all of it when left out.

    Attributes
    ----------
    running : Running
        The module, or that part, as it is run in training.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        classes: int,
        config: RunConfig,
        ignore: int | None = None,
        encoding: str = "float32",
        as_told: bool = False,
        runs: nn.Module | None = None,
    ) -> None:
        self.module = module
        how = (config.server_precision, config.server_compile) if as_told else ()
        self.running = Running(module if runs is None else runs, *how)
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
        found, weights = self.together([(z, y, draw)])
        return replace(found[0], weights=weights)

    def together(
        self, batches: Sequence[Batch], shares: Sequence[float] = (1.0,)
    ) -> tuple[list[Gradients], list[Tensor]]:
        """Run mini-batches forward and back at one time; neither weights nor sums change.

        Each has its own mean loss: with ``Σ_k s_k ℓ_k`` led back once, λ of a mini-batch is the
        gradient at its own samples over its share s_k, where no sample bears on another's output.

        Parameters
        ----------
        batches : sequence of Batch
            Smashed data, float32, shape [n, ...], labels, int64, shape [n, ...], and the round,
            partition and step of each; the first one's decide the dropout masks.
        shares : sequence of float
            s_k, above 0: how much each mini-batch counts in the sum.

        Returns
        -------
        found : list of Gradients
            λ and loss of each mini-batch, without its gradients at the weights.
        weights : list of Tensor
            ``Σ_k s_k ∇ℓ_k`` at each trainable parameter.

        Raises
        ------
        WireError
            If the labels, or the loss and gradients they give, cannot be used; buffers are then
            as they were.
        """
        for _, y, _ in batches:
            self.check_labels(y)
        device = device_of(self.module)
        sizes = [len(y) for _, y, _ in batches]
        cuts = [to_tensor(z, device) for z, _, _ in batches]
        # Of one mini-batch nothing is copied.
        cut = (cuts[0] if len(cuts) == 1 else torch.cat(cuts)).requires_grad_()
        with buffers_put_back(self.module):
            try:
                with seeded_torch("server forward", self._config.seed, *batches[0][2]):
                    output = self.running(cut)
                    parts = [output] if len(sizes) == 1 else output.split(sizes)
                    losses = [
                        self._loss(part, to_tensor(y, device))
                        for part, (_, y, _) in zip(parts, batches, strict=True)
                    ]
            except (RuntimeError, ValueError, IndexError) as error:
                # Shapes are checked before; what is left is a server half that cannot take the
                # batch.
                one = (
                    " BatchNorm cannot train on one sample: give every client at least two, set "
                    "batch-size to at least 2, or freeze it."
                )
                raise WireError(
                    f"the server half cannot use its batch: {error}.{one if len(cut) == 1 else ''}"
                ) from error
            lam, *weights = torch.autograd.grad(
                losses,
                [cut, *self._parameters],
                [torch.full_like(loss, share) for loss, share in zip(losses, shares, strict=True)],
                allow_unused=True,
                materialize_grads=True,
            )
            norms = torch._foreach_norm(weights) if weights else ()  # not finite if an element is
            buffers = [b for b in self.module.buffers() if b.is_floating_point()]
            checked = (*(loss.detach() for loss in losses), lam, *norms, *buffers)
            if not all(bool(torch.isfinite(part).all()) for part in checked):
                raise WireError(
                    "its loss or a gradient is not finite; lower the learning rates if this "
                    "repeats."
                )
            found = []
            for part, loss, share in zip(lam.split(sizes), losses, shares, strict=True):
                sent = to_array(part if share == 1.0 else part / share)
                self._encoding.encode(sent, "gradients")
                found.append(Gradients(sent, float(loss.detach()), []))
        return found, weights

    def add(self, gradients: Iterable[Gradients], weight: float) -> None:
        """Add gradients of mini-batches, times a weight, to what the next `step` follows."""
        for found in gradients:
            if weight != 1.0:
                torch._foreach_mul_(found.weights, weight)
            self.add_sum(found.weights)

    def add_sum(self, weights: list[Tensor]) -> None:
        """Add a sum of weighted gradients to what the next `step` follows."""
        if self._sum is None:
            self._sum = weights
        else:
            torch._foreach_add_(self._sum, weights)

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
