"""LoRA adapters in transformers models, by peft."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator

import torch
from torch import nn

from sfl_flower.errors import ConfigError
from sfl_flower.tasks.quantised import quiet_imports

__all__ = ["INITS", "adapt", "adapted"]

INITS = ("default", "eva")
"""What A of the adapters may be at the start."""

# Where the papers put them: the query and value projections.
_TARGETS = {
    "bert": "query,value",
    "roberta": "query,value",
    "gpt2": "c_attn",
}


def adapt(
    model: nn.Module,
    family: str,
    rank: int,
    alpha: int,
    targets: str,
    heads: Collection[str] = (),
    init: str = "default",
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
    init : {"default", "eva"}
        Whether A is trained, or a buffer that waits for the directions of `eva_directions`.

    Raises
    ------
    ConfigError
        peft is not installed, or no layer has such a name.
    """
    try:
        with quiet_imports():
            from peft import EvaConfig, LoraConfig, inject_adapter_in_model
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
        # Ranks are not spread anew (rho=1): every side must build adapters of the same shapes.
        init_lora_weights="eva" if init == "eva" else True,
        eva_config=EvaConfig(rho=1.0) if init == "eva" else None,
    )  # fmt: skip
    with warnings.catch_warnings(), quiet_imports():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            if "lora_" in name:
                parameter.data = parameter.data.float()
    if init == "eva":
        for _, down in adapted(model):
            # Frozen as a buffer, so that the server's values travel: a frozen parameter would have
            # to come out to the same bits of an SVD on every machine.
            weight = down.weight.detach().float()
            del down.weight
            down.register_buffer("weight", weight)


def adapted(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and A of each layer that has an adapter."""
    for name, module in model.named_modules():
        downs = getattr(module, "lora_A", None)
        if isinstance(downs, nn.ModuleDict):
            for down in downs.values():
                assert isinstance(down, nn.Linear)
                yield name, down
