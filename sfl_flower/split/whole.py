"""Both halves as one module, for methods whose clients train the whole model."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Whole"]


class Whole(nn.Module):
    """The whole model of its two halves, which it shares with whoever else holds them.

    Parameters
    ----------
    client, server : nn.Module
        f_c and f_s; their parameters are named ``client.…`` and ``server.…`` here.
    """

    def __init__(self, client: nn.Module, server: nn.Module) -> None:
        super().__init__()
        self.client = client
        self.server = server

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's output for inputs x."""
        output: Tensor = self.server(self.client(x))
        return output
