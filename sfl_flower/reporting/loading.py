"""An exported model back in a module of the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from sfl_flower.errors import DataError, TrainingError
from sfl_flower.report.files import canonical_json
from sfl_flower.report.tensors import load_tensors, tensor_digest
from sfl_flower.split import dequantised, load_dequantised

__all__ = ["WEIGHTS", "fit", "load_exported", "state_digest"]

WEIGHTS = "model.safetensors"
"""The file of the whole model's weights."""

M = TypeVar("M", bound=nn.Module)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of a model's weights: names, dtypes, shapes and bytes.

    Parameters
    ----------
    state : mapping of str to Tensor
        A ``state_dict()``, in any order; quantised weights count as plain ones.
    """
    plain = dequantised(state)
    digests = {name: tensor_digest(value.detach().cpu()) for name, value in plain.items()}
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def load_exported(folder: Path | str, model: M) -> M:
    """Load an exported model into a module, and return it, its mode unchanged.

    Parameters
    ----------
    folder : Path or str
        What `export_model` or ``sfl export`` wrote.
    model : nn.Module
        The whole model, not cut, as the task's ``model()`` builds it; on any device.

    Raises
    ------
    DataError
        If the file is missing or damaged, or the module is another one; the message names the
        first weight that does not fit. The module is then as it was.

    Examples
    --------
    >>> from sfl_flower import load_exported
    >>> model = load_exported("exported", MyModel())  # doctest: +SKIP
    """
    path = Path(folder).expanduser() / WEIGHTS
    state, _ = load_tensors(path, "the exported model")
    fit(model, state, path)
    return model


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a module that must have just these.

    Parameters
    ----------
    model : nn.Module
        The whole model.
    state : mapping of str to Tensor
        Its weights, none quantised.
    path : Path
        Where they are from, for errors.

    Raises
    ------
    DataError
        If the module is another one.
    """
    own = dequantised(model.state_dict())
    for name in sorted(state.keys() | own.keys()):
        if name not in state or name not in own:
            where = "the model given, but not in the file" if name in own else "the file alone"
            raise DataError(
                f"{path} is of another model: '{name}' is in {where}; give the whole model, as the "
                "task's model() builds it."
            )
        ours, theirs = own[name], state[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise DataError(
                f"{path} is of another model: '{name}' is {theirs.dtype} {list(theirs.shape)} "
                f"there and {ours.dtype} {list(ours.shape)} in yours; build it as the run did."
            )
    try:
        load_dequantised(model, state)
    except TrainingError as error:  # a quantised weight has another value
        raise DataError(f"{path} is of another model: {error}") from error
