"""The two halves of a transformers model that is cut behind a block.

A half is a truncated twin: a copy of the model in which everything that belongs to the other half
is passed by. Positions, masks and rotary tables are thus made by the model's own code, the blocks
keep their indices (which say whether a block attends in a window), and parameters their names.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.errors import DataError
from sfl_flower.split.transformers.families import Output

__all__ = [
    "BlockHalf",
    "ClientBlocks",
    "NoPositions",
    "Passed",
    "ServerBlocks",
    "longest",
    "padded",
]


class Passed(nn.Module):
    """Stands where the other half has a module: what comes in goes out."""

    def forward(
        self, hidden: Any = None, *_: Any, inputs_embeds: Any = None, **__: Any
    ) -> Any:  # `inputs_embeds` is what BERT's embeddings are called with
        """Return the hidden states unchanged."""
        return hidden if inputs_embeds is None else inputs_embeds


class NoPositions(nn.Module):
    """Stands for learned position embeddings that the client half has added already."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Return zero, which has no dtype of its own when it is added."""
        return torch.zeros(())


class BlockHalf(nn.Module):
    """What both halves have in common: the modules of a truncated twin under their full names.

    Parameters
    ----------
    root : nn.Module
        The truncated twin of what the user gave, taken over.
    model : nn.Module
        The transformers model in it, or `root` itself.
    """

    _sfl_model: tuple[Any]

    def __init__(self, root: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters = root._modules, root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.training = root.training
        # In a tuple, because its modules are already here under their full names.
        self._sfl_model = (model,)

    def resumed(self, z: Tensor, first: str) -> tuple[dict[str, Any], Tensor]:
        """Return what the model goes on from, behind a cut, and which positions are real.

        Parameters
        ----------
        z : Tensor
            Hidden states [N, T, H], float32; a position whose whole row is zero is padding.
        first : str
            Path in the model of what reads them, whose dtype they take.

        Returns
        -------
        inputs : dict
            Keyword arguments of the model, of the longest row's T' positions.
        mask : Tensor
            bool [N, T'].
        """
        mask = (z.detach() != 0).any(dim=-1)
        mask = mask[:, : longest(mask)]
        dtype = next(self._sfl_model[0].get_submodule(first).parameters()).dtype
        # Filling with zeros changes nothing but the gradient, which is exactly zero there.
        hidden = z[:, : mask.shape[1]].masked_fill(~mask.unsqueeze(-1), 0.0).to(dtype)
        inputs = {"inputs_embeds": hidden, "attention_mask": mask.long()}
        return {**inputs, "use_cache": False, "return_dict": True}, mask

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every module, the transformers model itself included."""
        self._sfl_model[0].training = mode
        return super().train(mode)


class ClientBlocks(BlockHalf):
    """Embeddings and the first blocks: from token ids to smashed data.

    Parameters
    ----------
    root, model : nn.Module
        As in `BlockHalf`.
    backbone : str
        Path of the backbone in `model`.
    pad : int, optional
        The id of padding; without it every position is real.

    Attributes
    ----------
    trims : bool
        Whether columns that are padding in every row are left out and put back: the same smashed
        data for less work, by a length that depends on the ids, which no ONNX file can say.
    """

    trims: bool = True

    def __init__(self, root: nn.Module, model: nn.Module, backbone: str, pad: int | None) -> None:
        super().__init__(root, model)
        self._sfl_backbone, self._sfl_pad = backbone, pad

    def forward(self, ids: Tensor) -> Tensor:
        """Return z [N, T, H], float32, zero at padding.

        Parameters
        ----------
        ids : Tensor
            Token ids [N, T], int64, padded on the right.

        Raises
        ------
        DataError
            `ids` is no matrix of integers, or an id or a position is beyond the model's range.
        """
        if ids.ndim != 2 or ids.is_floating_point() or ids.numel() == 0:
            raise DataError(
                f"a language model's batch is {ids.dtype} of shape {list(ids.shape)}; it must be "
                "int64 token ids of shape [N, T]."
            )
        mask = self.real(ids)
        length = longest(mask) if self.trims else ids.shape[1]
        mask, kept = mask[:, :length], ids[:, :length]
        model = self._sfl_model[0]
        try:
            hidden = model.get_submodule(self._sfl_backbone)(
                input_ids=kept, attention_mask=mask.long(), use_cache=False, return_dict=True
            ).last_hidden_state
        except IndexError as error:
            raise _out_of_range(kept, model.config, error) from error
        return padded(hidden.float(), mask, ids.shape[1])

    def real(self, ids: Tensor) -> Tensor:
        """Return which positions of `ids` [N, T] are real, bool."""
        if self._sfl_pad is None:
            return torch.ones_like(ids, dtype=torch.bool)
        return ids != self._sfl_pad


class ServerBlocks(BlockHalf):
    """The remaining blocks, the final norm and the head: from smashed data to logits.

    Parameters
    ----------
    root, model : nn.Module
        As in `BlockHalf`.
    backbone : str
        Path of the backbone in `model`.
    first : str
        Path in `model` of the first block of this half, whose dtype the hidden states have; of
        what follows the blocks where this half has none.
    output : str
        What the output is; see `Family`.
    """

    def __init__(
        self, root: nn.Module, model: nn.Module, backbone: str, first: str, output: Output
    ) -> None:
        super().__init__(root, model)
        self._sfl_backbone, self._sfl_first, self._sfl_output = backbone, first, output

    def forward(self, z: Tensor) -> Tensor:
        """Return logits, float32: [N, classes], or [N, T, vocabulary] with zeros at padding.

        Parameters
        ----------
        z : Tensor
            Smashed data [N, T, H], float32; a position whose whole row is zero is padding.
        """
        inputs, mask = self.resumed(z, self._sfl_first)
        model = self._sfl_model[0]
        if self._sfl_output == "last":
            # The model itself takes the last position: it sees no ids to tell padding by.
            hidden = model.get_submodule(self._sfl_backbone)(**inputs).last_hidden_state
            logits: Tensor = model.score(hidden)
            places = torch.arange(mask.shape[1], device=z.device)
            last = (places * mask).argmax(dim=-1)
            return logits[torch.arange(len(z), device=z.device), last].float()
        logits = model(**inputs).logits.float()
        if self._sfl_output == "model":
            return logits
        return padded(logits, mask, z.shape[1])


def padded(values: Tensor, mask: Tensor, length: int) -> Tensor:
    """Return values [N, T', ...] of positions as [N, length, ...], zero where they are not real."""
    values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    return functional.pad(values, (0, 0, 0, length - mask.shape[1]))


def longest(mask: Tensor) -> int:
    """Return the length of the longest row of `mask` [N, T], at least 1."""
    columns = mask.any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 1


def _out_of_range(ids: Tensor, config: Any, error: Exception) -> DataError:
    vocabulary = getattr(config, "vocab_size", "?")
    positions = getattr(config, "max_position_embeddings", "?")
    return DataError(
        f"the model has {vocabulary} token ids and {positions} positions, but a batch has ids up "
        f"to {int(ids.max())} and rows of {ids.shape[1]} tokens ({error}); use the tokenizer that "
        "belongs to the model, and truncate to its length."
    )
