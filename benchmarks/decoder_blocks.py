"""Blocks of a Llama decoder between two cuts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.split.transformers.block_halves import ServerBlocks, longest

__all__ = ["DecoderBlocks"]


class DecoderBlocks(nn.Module):
    """From z of the first cut to z of the second, [N, T, H], zero at padding.

    Padding is on the right, so the causal mask alone keeps it from what is real.

    Parameters
    ----------
    half : ServerBlocks
        The server half of the first cut, whose blocks are taken over.
    count : int
        Blocks between the cuts.
    """

    def __init__(self, half: ServerBlocks, count: int) -> None:
        super().__init__()
        backbone: Any = half._sfl_model[0].get_submodule(half._sfl_backbone)
        kept = [block for block in backbone.layers if hasattr(block, "self_attn")]
        self.layers = nn.ModuleList(kept[:count])
        self.rotary_emb = backbone.rotary_emb

    def forward(self, z: Tensor) -> Tensor:
        """Return z of the second cut."""
        mask = (z.detach() != 0).any(dim=-1)
        length = longest(mask)
        padding = ~mask[:, :length, None]
        hidden = z[:, :length]
        places = torch.arange(length, device=z.device)[None]
        tables = self.rotary_emb(hidden, places)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=None, position_embeddings=tables)
        hidden = hidden.masked_fill(padding, 0.0)
        return functional.pad(hidden, (0, 0, 0, z.shape[1] - length))
