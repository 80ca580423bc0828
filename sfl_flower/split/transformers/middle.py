"""The blocks of a transformers model between two cuts: from smashed data to features."""

from __future__ import annotations

from torch import Tensor, nn

from sfl_flower.split.transformers.block_halves import BlockHalf, NoPositions, Passed, padded
from sfl_flower.split.transformers.blocks import absent, headless
from sfl_flower.split.transformers.families import Found

__all__ = ["MiddleBlocks", "middle_blocks"]


class MiddleBlocks(BlockHalf):
    """Some blocks in the middle: from z to the hidden states behind the last of them.

    Parameters
    ----------
    root, model : nn.Module
        As in `BlockHalf`.
    backbone : str
        Path of the backbone in `model`.
    first : str
        Path in `model` of the first block, whose dtype the hidden states have.
    """

    def __init__(self, root: nn.Module, model: nn.Module, backbone: str, first: str) -> None:
        super().__init__(root, model)
        self._sfl_backbone, self._sfl_first = backbone, first

    def forward(self, z: Tensor) -> Tensor:
        """Return hidden states [N, T, H], float32, zero at padding.

        Parameters
        ----------
        z : Tensor
            Smashed data [N, T, H], float32; a position whose whole row is zero is padding.
        """
        inputs, mask = self.resumed(z, self._sfl_first)
        backbone = self._sfl_model[0].get_submodule(self._sfl_backbone)
        return padded(backbone(**inputs).last_hidden_state.float(), mask, z.shape[1])


def middle_blocks(model: nn.Module, found: Found, lower: str, upper: str) -> MiddleBlocks:
    """Return the blocks behind `lower` up to and including `upper`.

    Parameters
    ----------
    model : nn.Module
        A transformers model, or a peft model around one; it is copied, never changed.
    found : Found
        Where its parts are.
    lower, upper : str
        Full names of blocks, the first before the second.
    """
    family, prefix = found.family, found.prefix
    blocks = [name.removeprefix(prefix) for name in found.blocks()]
    first, last = (blocks.index(name.removeprefix(prefix)) + 1 for name in (lower, upper))
    away = [*blocks[:first], *blocks[last:], *family.embeddings, *family.after]
    stand = absent(found.model, away, Passed)
    stand |= absent(found.model, list(family.positions), NoPositions)
    root = headless(model, found, stand)
    inner = root.get_submodule(prefix.rstrip("."))
    return MiddleBlocks(root, inner, family.backbone, blocks[first])
