"""What the server keeps for each client of FSL-SAGE: a head, its optimiser, a buffer."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfl_flower.server.alignment import AlignedHead, Buffer
from sfl_flower.split import travelling_state
from sfl_flower.training.optim import make_optimizer
from sfl_flower.wire import pack_state
from sfl_flower.wire.fsl_sage import head_digest

__all__ = ["HeadBank"]


class HeadBank:
    """Heads and buffers of clients, by the number of their share of the data.

    Parameters
    ----------
    common : nn.Module
        The head that every client starts from; it may change until the first alignment.
    buffer : int
        Samples kept of each client.
    optimizer : str
        Name of the heads' optimiser.
    lr : float
        Its learning rate.
    """

    def __init__(self, common: nn.Module, buffer: int, optimizer: str, lr: float) -> None:
        self._common = common
        self._size = buffer
        self._optimizer = (optimizer, lr)
        self._buffers: dict[int, Buffer] = {}
        self._heads: dict[int, AlignedHead] = {}
        self._digests: dict[int, str] = {}

    def buffer(self, client: int) -> Buffer:
        """Return a client's buffer."""
        return self._buffers.setdefault(client, Buffer(self._size))

    def head(self, client: int) -> AlignedHead:
        """Return a client's own head; whoever aligns it calls `changed`."""
        if client not in self._heads:
            frozen = {id(p): p for p in self._common.parameters() if not p.requires_grad}
            module = copy.deepcopy(self._common, dict(frozen))  # which all heads share
            optimizer: torch.optim.Optimizer = make_optimizer(module.parameters(), *self._optimizer)
            self._heads[client] = AlignedHead(module, optimizer)
        return self._heads[client]

    def state(self, client: int) -> dict[str, Tensor]:
        """Return what travels of a client's head, the common one before its first alignment."""
        own = self._heads.get(client)
        return travelling_state(self._common if own is None else own.module)

    def digest(self, client: int) -> str:
        """Return the digest of a client's head."""
        if client not in self._digests:
            self._digests[client] = head_digest(pack_state(self.state(client)))
        return self._digests[client]

    def changed(self, client: int) -> None:
        """Say that a client's head is no longer what it was."""
        self._digests.pop(client, None)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything for a checkpoint."""
        return {
            f"{kind}.{client}.{name}": value
            for kind, held in (("heads", self._heads), ("buffers", self._buffers))
            for client, part in held.items()
            for name, value in part.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; other names are passed over."""
        parts: dict[tuple[str, int], dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(("heads.", "buffers.")):
                kind, client, name = key.split(".", 2)
                parts.setdefault((kind, int(client)), {})[name] = value
        for (kind, number), found in parts.items():
            part = self.head(number) if kind == "heads" else self.buffer(number)
            part.load_tensors(found)
        self._digests.clear()
