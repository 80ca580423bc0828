"""Hugging Face models that are cut by blocks: where each family keeps its parts.

Nothing here imports transformers or peft: a model is known by the names of its classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

__all__ = ["FAMILIES", "Family", "Found", "find", "known", "of_library"]

Output = Literal["tokens", "last", "model"]


@dataclass(frozen=True)
class Family:
    """Where the models of one family keep their parts; paths begin at the transformers model.

    Attributes
    ----------
    name : str
        What people call it.
    classes : mapping of str to str
        Its classes that can be cut, and what the output of each is: ``tokens``, logits at every
        position; ``last``, class logits at the last real token; ``model``, class logits as the
        model itself pools them.
    backbone : str
        The module between token ids and last hidden states.
    blocks : str
        The list of blocks.
    embeddings : tuple of str
        Modules before the first block, which the server half passes by.
    positions : tuple of str
        Modules before the first block whose output is added to the token embeddings.
    after : tuple of str
        Modules of the backbone behind the last block, which the client half passes by.
    """

    name: str
    classes: Mapping[str, Output]
    backbone: str
    blocks: str
    embeddings: tuple[str, ...]
    positions: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def _bert(name: str, first: str, causal: str, prefix: str) -> Family:
    return Family(
        name,
        {
            f"{first}ForSequenceClassification": "model",
            f"{first}ForMaskedLM": "tokens",
            causal: "tokens",
        },
        backbone=prefix,
        blocks=f"{prefix}.encoder.layer",
        embeddings=(f"{prefix}.embeddings",),
        after=(f"{prefix}.pooler",),
    )


def _llama(name: str, *prefixes: str) -> Family:
    """Return a family of rotary positions, which its backbone computes for all blocks at once."""
    first, last = prefixes[0], prefixes[-1]
    return Family(
        name,
        {f"{first}ForCausalLM": "tokens", f"{last}ForSequenceClassification": "last"},
        backbone="model",
        blocks="model.layers",
        embeddings=("model.embed_tokens",),
        after=("model.norm",),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        "GPT-2",
        {"GPT2LMHeadModel": "tokens", "GPT2ForSequenceClassification": "last"},
        backbone="transformer",
        blocks="transformer.h",
        embeddings=("transformer.wte", "transformer.drop"),
        positions=("transformer.wpe",),
        after=("transformer.ln_f",),
    ),
    Family(
        "OPT",
        {"OPTForCausalLM": "tokens", "OPTForSequenceClassification": "last"},
        backbone="model",
        blocks="model.decoder.layers",
        embeddings=("model.decoder.embed_tokens", "model.decoder.project_in"),
        positions=("model.decoder.embed_positions",),
        after=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    ),
    _bert("BERT", "Bert", "BertLMHeadModel", "bert"),
    _bert("RoBERTa", "Roberta", "RobertaForCausalLM", "roberta"),
    _llama("Llama", "Llama"),
    _llama("Qwen 2", "Qwen2"),
    _llama("Qwen 3", "Qwen3"),
    _llama("Gemma", "Gemma"),
    _llama("Gemma 2", "Gemma2"),
    _llama("Gemma 3", "Gemma3", "Gemma3Text"),
)
"""Every family whose models can be cut by blocks."""


@dataclass(frozen=True)
class Found:
    """A transformers model inside what the user gave.

    Attributes
    ----------
    model : nn.Module
        The transformers model.
    prefix : str
        Its path in what the user gave, with a dot at the end; empty if it is that itself.
    family : Family
        Its family.
    output : str
        What its output is; see `Family`.
    """

    model: nn.Module
    prefix: str
    family: Family
    output: Output

    def blocks(self) -> dict[str, nn.Module]:
        """Return the blocks by their full names, in order."""
        blocks = self.model.get_submodule(self.family.blocks)
        start = f"{self.prefix}{self.family.blocks}."
        return {start + name: block for name, block in blocks.named_children()}


def of_library(model: nn.Module, *libraries: str) -> bool:
    """Tell whether a class of `model`, or one it inherits from, comes from one of `libraries`."""
    homes = {(kind.__module__ or "").partition(".")[0] for kind in type(model).__mro__}
    return not homes.isdisjoint(libraries)


def find(model: nn.Module) -> Found | None:
    """Find the transformers model that `model` is, or that it wraps for peft; None if unknown."""
    inside = model.named_modules() if of_library(model, "peft") else [("", model)]
    for path, module in inside:
        if not of_library(module, "transformers"):
            continue
        names = {kind.__name__ for kind in type(module).__mro__}
        for family in FAMILIES:
            for name, output in family.classes.items():
                if name in names:
                    return Found(module, f"{path}." if path else "", family, output)
    return None


def known() -> str:
    """Say which models can be cut by blocks."""
    names = [family.name for family in FAMILIES]
    masked = [f.name for f in FAMILIES if any("MaskedLM" in name for name in f.classes)]
    return (
        f"…ForCausalLM and …ForSequenceClassification of {', '.join(names)}, and …ForMaskedLM of "
        f"{' and '.join(masked)}"
    )
