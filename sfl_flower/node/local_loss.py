"""What clients with a loss of their own share: client half and head, uploads, state.

Such a client runs h steps on the loss that an auxiliary head gives, and keeps the smashed data of
every k-th for the server.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.errors import DataError, TrainingError
from sfl_flower.node.micro_batches import micro_batches
from sfl_flower.node.node import Node
from sfl_flower.split import load_travelling, travelling_state
from sfl_flower.training.device import to_array
from sfl_flower.wire import Usage, unpack_state
from sfl_flower.wire.local import LocalReply, LocalRequest

__all__ = ["LocalModel", "Uploads", "first_order_steps", "local_model", "settings_of"]


class LocalModel(nn.Module):
    """Client half and auxiliary head, the model of a client's own loss.

    Parameters
    ----------
    client, head : nn.Module
        f_c and f_a.
    """

    def __init__(self, client: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.client = client
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's outputs for inputs x."""
        output: Tensor = self.head(self.client(x))
        return output


def local_model(node: Node, request: LocalRequest, laid_out: str = "") -> LocalModel:
    """Return the process's client half and head with the weights of a request.

    Where the client is to hold them by changes they are as they were: `follow` of
    `sfl_flower.node.downlink` loads them.

    Parameters
    ----------
    node : Node
        The client.
    request : LocalRequest
        Brings the weights; a head that it does not bring stays as it was built.
    laid_out : str
        For whom the parameters are laid out in a vector; each has a model of its own.
    """

    def build() -> LocalModel:
        client = node.ready(node.task.build(node.model_seed).client)
        return LocalModel(client, node.new_head(request.head))

    model = node.memo(("local model", request.head, laid_out), build)
    if request.holds is not None:
        return model
    load_travelling(model.client, unpack_state(request.weights, travelling_state(model.client)))
    if request.head_weights:
        head = travelling_state(model.head)
        load_travelling(model.head, unpack_state(request.head_weights, head))
    return model


def settings_of(request: LocalRequest) -> dict[str, Any]:
    """Return the client optimiser and its settings."""
    settings: dict[str, Any] = json.loads(request.optimizer)
    return settings


def first_order_steps(
    node: Node,
    request: LocalRequest,
    model: LocalModel,
    optimizer: torch.optim.Optimizer,
    uploads: Uploads,
) -> None:
    """Take a round's local steps by backprop; one forward a step gives z and the head's loss."""
    for step in range(request.steps):
        x, y = node.batch(request.round, step, request.batch_size)
        found = torch.zeros((), dtype=torch.float64, device=node.device)
        for part in micro_batches(node, request.round, step, x, y):
            with torch.enable_grad(), part.draws():
                z = model.client(part.x)
                uploads.add(step, z, part.y)
                if not part.share:  # no label of these counts
                    continue
                loss = part.weighted(node.task.loss(model.head(z), part.y))
            del z  # autograd keeps what it needs
            loss.backward()
            found += loss.detach().double()
        uploads.note(found)
        optimizer.step()
        optimizer.zero_grad()


class Uploads:
    """Collects the smashed data and labels of every k-th step, outside torch's memory.

    Parameters
    ----------
    every : int
        k.
    first : int
        Steps before this one send nothing.
    """

    def __init__(self, every: int, first: int = 0) -> None:
        self._every = every
        self._first = first
        self._z: list[np.ndarray] = []
        self._y: list[np.ndarray] = []
        self._sizes: dict[int, int] = {}
        self.samples = 0
        self._losses: list[Tensor] = []

    def add(self, step: int, z: Tensor, y: Tensor) -> None:
        """Count samples of a step, and keep them if it is a k-th step; z before the step."""
        self.samples += len(y)
        if z.dtype != torch.float32:
            raise DataError(f"The client half gives {z.dtype}; smashed data must be float32.")
        if step % self._every == 0:
            if step < self._first:
                z, y = z[:0], y[:0]  # a reply without samples still has their shape
            else:
                self._sizes[step] = self._sizes.get(step, 0) + len(y)
            self._z.append(to_array(z).copy())
            self._y.append(to_array(y.to(torch.int64)))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return smashed data, labels and the samples of each step that sends some."""
        sizes = np.array([*self._sizes.values()], dtype=np.int64)
        return np.concatenate(self._z), np.concatenate(self._y), sizes

    def note(self, loss: Tensor) -> None:
        """Remember the local loss of a step; it is read when all steps are done."""
        self._losses.append(loss.detach().double().reshape(()))

    def reply(self, request: LocalRequest, usage: Usage, **more: Any) -> LocalReply:
        """Return the reply of a round of local steps.

        Parameters
        ----------
        request : LocalRequest
            What was asked.
        usage : Usage
            What was measured.
        **more
            Weights, head weights or scalars.

        Raises
        ------
        TrainingError
            If the local loss was not finite.
        """
        loss = float(to_array(torch.stack(self._losses)).mean())
        if not np.isfinite(loss):
            raise TrainingError(
                f"The local loss is {loss}; lower client-lr if this repeats. The client's weights "
                "stay as the server knows them."
            )
        z, y, sizes = self.arrays()
        return LocalReply(
            round=request.round,
            samples=self.samples,
            z=z,
            y=y,
            sizes=sizes,
            loss=loss,
            usage=usage,
            **more,
        )
