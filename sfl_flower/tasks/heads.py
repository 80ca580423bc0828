"""What stands behind the blocks of a transformers model: a classifier, or an output layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HEADS", "keep_words", "train_heads"]

HEADS = ("classifier", "score", "pooler")
"""Names of the modules that are not pre-trained for the task, and so trained whole."""


def keep_words(model: Any, ids: list[int]) -> None:
    """Replace the output layer by its rows for these tokens."""
    whole = model.get_output_embeddings()
    few = nn.Linear(whole.in_features, len(ids), bias=whole.bias is not None)
    few.to(whole.weight.dtype)
    with torch.no_grad():
        few.weight.copy_(whole.weight[ids])
        if whole.bias is not None:
            few.bias.copy_(whole.bias[ids])
    model.set_output_embeddings(few)


def train_heads(model: nn.Module) -> None:
    """Train what is behind the blocks and not pre-trained for the task, in float32."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in HEADS:
            if next(module.parameters()).dtype != torch.float32:
                module.float().register_forward_pre_hook(_as_float)
            module.requires_grad_(True)


def _as_float(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)
