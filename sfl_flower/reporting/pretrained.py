"""A transformers model as a folder that `from_pretrained` reads, adapters merged."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.task import SplitTask

__all__ = ["merged", "write_pretrained"]

# How peft renames what it wraps: layers with adapters, the model, heads that are trained whole.
_BASE, _WRAPPED, _FIRST = ".base_layer.", "base_model.model.", ".original_module."
_TRAINED = re.compile(r"\.modules_to_save\.[^.]+\.")


def write_pretrained(
    model: nn.Module, state: Mapping[str, Tensor], folder: Path, task: SplitTask | None = None
) -> dict[str, Any] | None:
    """Write a transformers model, and read it back; None where the model is none.

    Parameters
    ----------
    model : nn.Module
        The whole model as the task builds it, adapters included; its values do not matter.
    state : mapping of str to Tensor
        Its weights, none quantised.
    folder : Path
        Where to; what is there is replaced.
    task : SplitTask, optional
        Whose tokenizer goes along, where it has one.

    Returns
    -------
    dict or None
        ``class`` that reads it, None where no folder can be written; ``says``, a sentence for
        people; ``adapters``, how many were merged.
    """
    plain = _transformer(model)
    if plain is None:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    weights, count = merged(model, state)
    try:
        kind = type(plain)
        config = copy.deepcopy(plain.config)
        # What reading back gives: a model that is built of the configuration alone.
        fresh = kind(config)
        fresh.load_state_dict(weights, strict=False)
        lacking = {*fresh.state_dict()} ^ {*weights}
        if lacking:
            raise ValueError(f"'{min(lacking)}' has no place in it")
        kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32  # which holds the others exactly
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
        fresh = fresh.to(dtype)
        fresh.load_state_dict(weights)
        fresh.save_pretrained(folder)
        again = kind.from_pretrained(folder, use_safetensors=True)
        if any(not torch.equal(value, weights[name]) for name, value in again.state_dict().items()):
            raise ValueError("its weights are not read back as they were written")
    except Exception as error:  # transformers raises what it likes
        shutil.rmtree(folder, ignore_errors=True)
        reason = " ".join(str(error).split())[:300].rstrip(".")
        says = f"There is no folder for `from_pretrained`: {type(plain).__name__} does not read "
        return {"class": None, "says": f"{says}this model back ({reason}).", "adapters": count}
    tokenizer = getattr(getattr(task and task.model, "__self__", None), "tokenizer", None)
    if callable(tokenizer):
        tokenizer().save_pretrained(folder)
    adapters = f" Its {count} LoRA adapters are merged into the weights." if count else ""
    says = f"`transformers/` holds it for transformers, and needs no peft.{adapters}"
    home = "transformers" if kind.__module__.startswith("transformers.") else kind.__module__
    return {"class": f"{home}.{kind.__name__}", "says": says, "adapters": count}


def _transformer(model: nn.Module) -> Any:
    """Return the transformers model that a model is, or that peft wrapped; None for others."""
    inner = getattr(getattr(model, "base_model", None), "model", None)
    for found in (model, inner):
        if any(kind.__name__ == "PreTrainedModel" for kind in type(found).__mro__):
            return found
    return None


def merged(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return weights without adapters: W + (α / r) B A in place of W, A and B, and how many.

    Parameters
    ----------
    model : nn.Module
        Whose layers say how an adapter is scaled, and whether W is transposed.
    state : mapping of str to Tensor
        Weights under the names of the model.
    """
    found, count = dict(state), 0
    for name, layer in model.named_modules():
        downs = getattr(layer, "lora_A", None)
        if not isinstance(downs, nn.ModuleDict) or f"{name}{_BASE}weight" not in found:
            continue
        weight = found[f"{name}{_BASE}weight"]
        change = torch.zeros(weight.shape, dtype=torch.float64)
        for key in downs:
            down = found.pop(f"{name}.lora_A.{key}.weight").double()
            up = found.pop(f"{name}.lora_B.{key}.weight").double()
            moved = float(layer.scaling[key]) * (up @ down)
            change += moved.t() if getattr(layer, "fan_in_fan_out", False) else moved
            count += 1
        found[f"{name}{_BASE}weight"] = (weight.double() + change).to(weight.dtype)
    plain = {}
    for name, value in found.items():
        if _FIRST not in name:  # peft keeps what a head was before it was trained
            short = _TRAINED.sub(".", name.removeprefix(_WRAPPED)).replace(_BASE, ".")
            plain[short] = value
    return plain, count
