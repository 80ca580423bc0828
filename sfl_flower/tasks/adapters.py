"""LoRA adapters in transformers models, by peft."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import nn

from sfl_flower.errors import ConfigError
from sfl_flower.tasks.quantised import quiet_imports

__all__ = ["adapt"]

# Where the papers put them: the query and value projections.
_TARGETS = {
    "bert": "query,value",
    "roberta": "query,value",
    "gpt2": "c_attn",
}


def adapt(
    model: nn.Module, family: str, rank: int, alpha: int, targets: str, heads: Collection[str] = ()
) -> None:
    """Put LoRA adapters into a model and freeze the rest, in place.

    Parameters
    ----------
    model : nn.Module
        A transformers model.
    family : str
        ``config.model_type``.
    rank, alpha : int
        r and α: an adapter adds (α / r) B A x; A is drawn from torch's generator, B is zero.
    targets : str
        Names of the layers that get one, by commas; by default ``query,value`` (BERT, RoBERTa),
        ``c_attn`` (GPT-2), ``q_proj,v_proj`` (others).
    heads : collection of str
        Names of modules that are trained whole: no layer in them gets an adapter.

    Raises
    ------
    ConfigError
        peft is not installed, or no layer has such a name.
    """
    try:
        with quiet_imports():
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "Adapters need peft; run `pip install 'sfl-flower[language]'`, or set lora_rank=0."
        ) from error
    names = [name.strip() for name in (targets or _TARGETS.get(family, "q_proj,v_proj")).split(",")]
    layers = {
        path.rpartition(".")[2]: isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        for path, module in model.named_modules()
        if not set(path.split(".")) & set(heads)
    }
    if unknown := [name for name in names if name.rpartition(".")[2] not in layers]:
        linear = ", ".join(sorted(name for name, is_linear in layers.items() if is_linear))
        raise ConfigError(
            f"Option 'lora_targets' names {unknown[0]!r}, which is no layer below the model's "
            f"head; the linear layers there are {linear}."
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none",
        fan_in_fan_out=family == "gpt2",  # its Conv1D keeps weights transposed
        exclude_modules=rf"(.*\.)?({'|'.join(heads)})(\..*)?" if heads else None,
    )  # fmt: skip
    with warnings.catch_warnings(), quiet_imports():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            if "lora_" in name:
                parameter.data = parameter.data.float()
