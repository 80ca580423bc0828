"""The whole model as Flower's record, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from sfl_flower.errors import TrainingError

__all__ = ["as_record", "from_record"]


def as_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return plain tensors as Flower's record; bfloat16, which numpy lacks, as float32."""
    return ArrayRecord({k: v.float() if v.dtype == torch.bfloat16 else v for k, v in state.items()})


def from_record(arrays: ArrayRecord, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return first weights in the dtypes of the task's own.

    Raises
    ------
    TrainingError
        If names or shapes are not those of the task's model.
    """
    state = arrays.to_torch_state_dict()
    if set(state) != set(own) or any(state[k].shape != own[k].shape for k in own):
        raise TrainingError(
            "initial_arrays do not hold the task's model; pass strategy.arrays(), or weights "
            "with the same names and shapes."
        )
    return {name: value.to(own[name].dtype) for name, value in state.items()}
