"""Adapters whose A is set by what enters their layers: EVA of peft (arXiv 2410.07170).

As ``trained="subspace:R"`` does it, through the library: A is frozen, in the leading directions of
a layer's inputs on public texts, and B alone is trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from sfl_flower.data import Samples, seeded_construction
from sfl_flower.errors import ConfigError
from sfl_flower.tasks.adapters import adapted
from sfl_flower.tasks.checkpoints import Checkpoint, pad_id
from sfl_flower.tasks.quantised import quiet_imports
from sfl_flower.training.modes import torch_threads

__all__ = ["eva_directions", "first_directions"]

MOST = 32
"""Forwards after which directions that still turn are given up: peft itself would go on for ever.
On one batch the third finds those of the second."""


def first_directions(
    checkpoint: Checkpoint, public: Callable[[], Samples] | None
) -> Callable[[], dict[str, Tensor]] | None:
    """Return what gives the first values of the adapters' A; None where they are drawn.

    Raises
    ------
    ConfigError
        They are asked for, and there are no public texts.
    """
    if checkpoint.lora_init == "default":
        return None
    if public is None:
        raise ConfigError(
            f"Option 'lora_init' of task {checkpoint.task!r} is {checkpoint.lora_init!r}, which is "
            "fitted on public texts, and the task has none; give it public=, rows that are "
            "nobody's secret, or use lora_init=default."
        )
    return partial(eva_directions, checkpoint, public)


def eva_directions(checkpoint: Checkpoint, public: Callable[[], Samples]) -> dict[str, Tensor]:
    """Return A of every adapter of a checkpoint, by name, its rows orthonormal.

    They are the leading principal directions of what enters each layer at the tokens of the texts,
    padding left out.  All texts are one batch, so they do not depend on an order.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model, with ``lora_init="eva"``.
    public : callable
        Gives the texts.

    Raises
    ------
    ConfigError
        The rank is too high for a layer or for the texts.
    """
    ids = public().x
    mask = ids != pad_id(checkpoint.tokenizer())
    with seeded_construction(0), torch_threads(1):  # a head is drawn, and plays no part here
        model: Any = checkpoint.build()
        _check_rank(checkpoint, model, int(mask.sum()))
        batch = {"input_ids": ids, "attention_mask": mask.long()}
        with quiet_imports(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from peft import get_eva_state_dict

            found = get_eva_state_dict(
                _Adapted(model), [batch], forward_fn=_Forwards(checkpoint, len(ids)),
                show_progress_bar=False,
            )  # fmt: skip
    return {
        f"{name.removeprefix('model.')}.lora_A.default.weight": value.detach().clone()
        for name, value in found.items()
    }


def _check_rank(checkpoint: Checkpoint, model: nn.Module, tokens: int) -> None:
    """Refuse a rank of which peft's SVD, which looks for twice as many directions, finds none."""
    for name, down in adapted(model):
        least, what = down.in_features, f"the {down.in_features} inputs of the layer '{name}'"
        if tokens < least:
            least, what = tokens, f"the {tokens} tokens of the public texts"
        if 2 * checkpoint.lora_rank > least:
            raise ConfigError(
                f"Option 'lora_rank' of task {checkpoint.task!r} is {checkpoint.lora_rank}, but "
                f"lora_init=eva needs twice as many as it among {what}; it must be at most "
                f"{least // 2}."
            )


class _Adapted(nn.Module):
    """A model with adapters in it, as `get_eva_state_dict` asks for one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.peft_config = model.peft_config

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Leave them: B is zero."""
        return nullcontext()


class _Forwards:
    """Runs a batch through a model, at most so often."""

    def __init__(self, checkpoint: Checkpoint, texts: int) -> None:
        self._checkpoint, self._texts, self._done = checkpoint, texts, 0

    def __call__(self, model: _Adapted, inputs: dict[str, Tensor]) -> None:
        self._done += 1
        if self._done > MOST:
            raise ConfigError(
                f"Option 'lora_rank' of task {self._checkpoint.task!r} is "
                f"{self._checkpoint.lora_rank}, but on its {self._texts} public texts the inputs "
                "of a layer do not tell so many directions apart; lower task.lora_rank, or give "
                "more public texts."
            )
        model.model(**inputs)
