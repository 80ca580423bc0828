"""Auxiliary heads that live on the server, and how they are aligned with the server half.

A head is aligned by gradient matching: its input gradient is to be the server half's, on the
client's last smashed data (FSL-SAGE, arXiv 2505.23182).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.server.tensors import load_trained, trained_tensors
from sfl_flower.training.modes import eval_mode, kept_buffers

__all__ = [
    "REFRESH_MODES",
    "AlignedHead",
    "Buffer",
    "check_alignable",
    "cut_gradient",
    "mismatch",
    "refresh",
]

REFRESH_MODES = ("batch", "running", "published")
"""What BatchNorm of the server half normalises with in the refresh: the buffer's own statistics,
its running ones, or the buffer's own, which then move the running ones (the published code)."""

Loss = Callable[[Tensor, Tensor], Tensor]


class Buffer:
    """The last samples of a client's smashed data, first in, first out.

    Parameters
    ----------
    size : int
        The most samples that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.z: np.ndarray | None = None
        self.y: np.ndarray | None = None

    def __len__(self) -> int:
        return 0 if self.z is None else len(self.z)

    def push(self, z: np.ndarray, y: np.ndarray) -> None:
        """Add samples and let go of those that came first."""
        self.z, self.y = self._joined(self.z, z), self._joined(self.y, y)

    def _joined(self, old: np.ndarray | None, new: np.ndarray) -> np.ndarray:
        new = new[-self._size :]
        if old is None:
            return new.copy()
        # A copy in any case: what arrived must not be held by a view of it.
        return np.concatenate([old[max(0, len(old) + len(new) - self._size) :], new])

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return smashed data and labels; there must be some."""
        assert self.z is not None and self.y is not None
        return torch.from_numpy(self.z), torch.from_numpy(self.y)

    def tensors(self) -> dict[str, Tensor]:
        """Return the samples for a checkpoint."""
        return dict(zip(("z", "y"), self.samples(), strict=True)) if len(self) else {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the samples of a checkpoint back."""
        self.z, self.y = tensors["z"].numpy(), tensors["y"].numpy()


def cut_gradient(
    module: nn.Module,
    loss: Loss,
    z: Tensor,
    y: Tensor,
    graph: bool = False,
) -> Tensor:
    """Return ∇_z ℓ(f(z), y); gradients of weights are not computed.

    Parameters
    ----------
    module : nn.Module
        f: a server half, which gives λ, or an auxiliary head, which gives an estimate of it.
    loss : callable
        ℓ, the mean loss of outputs and labels.
    z : Tensor
        Smashed data [n, ...]; a graph behind it is left alone.
    y : Tensor
        Labels [n, ...].
    graph : bool
        Whether the gradient can be differentiated again.

    Returns
    -------
    Tensor
        Shape of z.
    """
    with torch.enable_grad():
        cut = z.detach().requires_grad_()
        value = loss(module(cut), y)
        (gradient,) = torch.autograd.grad(value, cut, create_graph=graph)
    return gradient


def refresh(server: nn.Module, loss: Loss, z: Tensor, y: Tensor, mode: str = "batch") -> Tensor:
    """Return the server half's gradient of the mean loss at smashed data.

    Parameters
    ----------
    server : nn.Module
        The server half, in the modes it trains in.
    loss : callable
        Mean loss of outputs and labels.
    z, y : Tensor
        The whole buffer: smashed data [n, ...] and labels [n, ...].
    mode : str
        One of `REFRESH_MODES`.

    Returns
    -------
    Tensor
        G, shape of z.
    """
    with ExitStack() as stack:
        if mode == "running":
            stack.enter_context(eval_mode(server))
        if mode != "published":
            stack.enter_context(kept_buffers(server))
        return cut_gradient(server, loss, z, y)


def mismatch(head: nn.Module, loss: Loss, z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return ``Σ ‖∇_z ℓ(f_a(z), y) - target‖²`` over the samples of a batch, shape [].

    Parameters
    ----------
    head : nn.Module
        f_a.
    loss : callable
        ℓ, mean loss of outputs and labels.
    z, y, target : Tensor
        Smashed data, labels and the wanted gradients of the *batch's* mean loss.
    """
    return (cut_gradient(head, loss, z, y, graph=True) - target).square().sum()


def check_alignable(kind: str, head: nn.Module, loss: Loss, z: Tensor, y: Tensor) -> None:
    """Refuse a head whose input gradient cannot be differentiated; it stays as it is.

    Parameters
    ----------
    kind : str
        What the option `head` says, for the error.
    head : nn.Module
        The head.
    loss : callable
        Mean loss of outputs and labels.
    z, y : Tensor
        Some smashed data and labels.

    Raises
    ------
    CutError
        If an operation of the head has no second derivative.
    """
    try:
        # Towards every leaf, not the weights alone: that is where torch finds an operation that
        # hides its dependence on the gradient it got.
        mismatch(copy.deepcopy(head).eval(), loss, z, y, torch.zeros_like(z)).backward()
    except RuntimeError as error:
        raise CutError(
            f"head '{kind}' cannot be aligned: its gradient at the smashed data cannot be "
            f"differentiated again ({error}); use head 'linear', or one whose operations have "
            "second derivatives, as transformers' attention has with attn_implementation='eager' "
            "(task.attention=eager)."
        ) from error


class AlignedHead:
    """A client's auxiliary head on the server, with an optimiser that lasts.

    Parameters
    ----------
    module : nn.Module
        The head.
    optimizer : torch.optim.Optimizer
        Of its trained parameters.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer
        self._parameters = [p for p in module.parameters() if p.requires_grad]

    def align(
        self,
        loss: Loss,
        z: Tensor,
        y: Tensor,
        gradient: Tensor,
        epochs: int,
        batch: int,
        rng: np.random.Generator,
    ) -> list[float]:
        """Match the head's input gradient with the server half's.

        Parameters
        ----------
        loss : callable
            Mean loss of outputs and labels.
        z, y : Tensor
            The buffer, n samples.
        gradient : Tensor
            G, the server half's gradient of the mean loss over all n, shape of z.
        epochs, batch : int
            Passes over the buffer, and the most samples of a step.  A pass has as few steps as
            that allows, of equal size to within a sample, in a new order; one step takes the
            buffer as it lies.
        rng : numpy.random.Generator
            Draws the orders.

        Returns
        -------
        list of float
            The mismatch summed over each pass, before its steps.
        """
        count, found = len(z), []
        parts = -(-count // batch)
        for _ in range(epochs):
            order = rng.permutation(count) if parts > 1 else np.arange(count)
            total = 0.0
            for chosen in np.array_split(order, parts):
                rows = torch.from_numpy(chosen).to(z.device)
                # G is of a mean over n, the head's gradient of a mean over these: same scale.
                target = gradient[rows] * (count / len(rows))
                value = mismatch(self.module, loss, z[rows], y[rows], target)
                self._step(value)
                total += float(value.detach())
            found.append(total)
        return found

    def _step(self, value: Tensor) -> None:
        gradients = torch.autograd.grad(
            value, self._parameters, allow_unused=True, materialize_grads=True
        )
        for parameter, part in zip(self._parameters, gradients, strict=True):
            parameter.grad = part
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finite(self) -> bool:
        """Tell whether every parameter is finite."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters)

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of what travels of the head and of optimiser state, for a checkpoint."""
        return trained_tensors(self.module, self.optimizer)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put weights and optimiser state back."""
        load_trained(self.module, self.optimizer, tensors)
