"""Blocks of a BERT encoder between two cuts, run without what padding would cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.split.transformers.block_halves import ServerBlocks, longest

__all__ = ["EncoderBlocks"]


class EncoderBlocks(nn.Module):
    """From z of the first cut to z of the second, [N, T, H], zero at padding.

    All but attention runs on real positions alone: short sentences cost what they are.

    Parameters
    ----------
    half : ServerBlocks
        The server half of the first cut, whose blocks are taken over.
    """

    def __init__(self, half: ServerBlocks) -> None:
        super().__init__()
        backbone: Any = half._sfl_model[0].get_submodule(half._sfl_backbone)
        kept = [block for block in backbone.encoder.layer if hasattr(block, "attention")]
        self.layer = nn.ModuleList(kept)

    def forward(self, z: Tensor) -> Tensor:
        """Return z of the second cut."""
        mask = (z.detach() != 0).any(dim=-1)
        length = longest(mask)
        mask = mask[:, :length]
        real = mask.reshape(-1).nonzero()[:, 0]
        hidden = z[:, :length].reshape(-1, z.shape[-1])[real]
        for block in self.layer:
            hidden = _run(block, hidden, mask, real)
        whole = _spread(hidden, real, mask.numel()).reshape(*mask.shape, -1)
        return functional.pad(whole, (0, 0, 0, z.shape[1] - length))


def _run(block: Any, hidden: Tensor, mask: Tensor, real: Tensor) -> Tensor:
    """Return hidden states [real positions, H] behind a block."""
    attention = block.attention.self
    heads = (len(mask), mask.shape[1], -1, attention.attention_head_size)

    def split(part: nn.Module) -> Tensor:
        return _spread(part(hidden), real, mask.numel()).reshape(heads).transpose(1, 2)

    met = functional.scaled_dot_product_attention(
        split(attention.query),
        split(attention.key),
        split(attention.value),
        attn_mask=mask[:, None, None, :],
    )
    flat = met.transpose(1, 2).reshape(mask.numel(), -1)[real]
    hidden = block.attention.output(flat, hidden)
    out: Tensor = block.output(block.intermediate(hidden), hidden)
    return out


def _spread(rows: Tensor, real: Tensor, count: int) -> Tensor:
    """Return `count` rows, those of `rows` at `real`, zeros elsewhere."""
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, real, rows)
