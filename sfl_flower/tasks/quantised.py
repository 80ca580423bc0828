"""Frozen linear layers in int8, by torchao."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger

from torch import nn

from sfl_flower.errors import ConfigError

__all__ = ["quantise", "quiet_imports"]


def quantise(model: nn.Module) -> None:
    """Keep the weights of frozen linear layers in int8, in place.

    A row w of a weight becomes q = round(w / s) in −128 … 127 with a float32 scale s, max |w| over
    127.5. A layer computes (x qᵀ) s in the dtype of x. Biases, norms, embeddings (and an output
    layer tied to them) and everything trained stay as they are.

    Parameters
    ----------
    model : nn.Module
        The whole model, with its adapters: quantise last, when it is known what is trained.

    Raises
    ------
    ConfigError
        torchao is not installed.
    """
    try:
        with quiet_imports():
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ConfigError(
            "base_dtype=int8 needs torchao; run `pip install 'sfl-flower[language]'`, or set "
            "base_dtype=bfloat16."
        ) from error
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }

    def chosen(module: nn.Module, _name: str) -> bool:
        if not isinstance(module, nn.Linear) or id(module.weight) in embeddings:
            return False
        if "weight" not in module._parameters:  # A of an adapter, a buffer that travels
            return False
        return not any(parameter.requires_grad for parameter in module.parameters())

    # Left to itself, torchao changes settings of torch's compiler for the whole process.
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    quantize_(model, config, filter_fn=chosen)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep off the screen what torch remarks on how torchao registers two enums.

    transformers and peft import torchao wherever it is installed, whoever asks for it or not.
    """
    log = getLogger("torch.utils._pytree")
    before = log.level
    log.setLevel(ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
