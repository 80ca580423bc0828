"""Tiny Hugging Face models with weights of their own, and batches of token ids."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.architectures import Architecture

BLOCKS, VOCABULARY, PAD = 4, 40, 1
LENGTHS = (7, 3, 9, 1)

_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
_BERT = {
    "hidden_size": 16, "num_hidden_layers": BLOCKS, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 8}
_WINDOWS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
_OPT = {"hidden_size": 16, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "ffn_dim": 24,
        "max_position_embeddings": 32}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": BLOCKS, "n_head": 2, "n_positions": 32}),
    "opt": ("OPTConfig", _OPT),
    "opt-350m": (
        "OPTConfig", {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    ),
    "bert": ("BertConfig", _BERT),
    "roberta": ("RobertaConfig", _BERT),
    "llama": ("LlamaConfig", _LLAMA),
    "llama-tied": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen2": (
        "Qwen2Config",
        {**_LLAMA, "use_sliding_window": True, "sliding_window": 3, "layer_types": _WINDOWS},
    ),
    "qwen3": ("Qwen3Config", _LLAMA),
    "gemma": ("GemmaConfig", _LLAMA),
    "gemma2": ("Gemma2Config", {**_LLAMA, "sliding_window": 3, "layer_types": _WINDOWS}),
    "gemma3": ("Gemma3TextConfig", {**_LLAMA, "sliding_window": 3, "layer_types": _WINDOWS}),
}  # fmt: skip
"""Small configurations: four blocks of width 16, windows of different kinds where there are any."""

MODELS: dict[str, tuple[str, str]] = {
    "gpt2-lm": ("gpt2", "GPT2LMHeadModel"),
    "gpt2-classes": ("gpt2", "GPT2ForSequenceClassification"),
    "opt-lm": ("opt", "OPTForCausalLM"),
    "opt-classes": ("opt", "OPTForSequenceClassification"),
    "opt-350m-lm": ("opt-350m", "OPTForCausalLM"),
    "bert-classes": ("bert", "BertForSequenceClassification"),
    "bert-masked": ("bert", "BertForMaskedLM"),
    "bert-lm": ("bert", "BertLMHeadModel"),
    "roberta-classes": ("roberta", "RobertaForSequenceClassification"),
    "roberta-masked": ("roberta", "RobertaForMaskedLM"),
    "roberta-lm": ("roberta", "RobertaForCausalLM"),
    "llama-lm": ("llama", "LlamaForCausalLM"),
    "llama-tied-lm": ("llama-tied", "LlamaForCausalLM"),
    "llama-classes": ("llama", "LlamaForSequenceClassification"),
    "qwen2-lm": ("qwen2", "Qwen2ForCausalLM"),
    "qwen2-classes": ("qwen2", "Qwen2ForSequenceClassification"),
    "qwen3-lm": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3-classes": ("qwen3", "Qwen3ForSequenceClassification"),
    "gemma-lm": ("gemma", "GemmaForCausalLM"),
    "gemma-classes": ("gemma", "GemmaForSequenceClassification"),
    "gemma2-lm": ("gemma2", "Gemma2ForCausalLM"),
    "gemma2-classes": ("gemma2", "Gemma2ForSequenceClassification"),
    "gemma3-lm": ("gemma3", "Gemma3ForCausalLM"),
    "gemma3-classes": ("gemma3", "Gemma3TextForSequenceClassification"),
}
"""Every kind of model that can be cut: its configuration and its class."""


def build(name: str, **options: Any) -> Any:
    """Return a new tiny model in eval mode; weights far enough apart that mixing them up shows."""
    return copy.deepcopy(_built(name, tuple(options.items())))


@functools.cache
def _built(name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    config_name, kind = MODELS[name]
    config_class, values = CONFIGS[config_name]
    settings = {**_SPECIAL, "num_labels": 3, **values, **dict(options)}
    if kind in ("BertLMHeadModel", "RobertaForCausalLM"):
        settings["is_decoder"] = True
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, kind)(getattr(transformers, config_class)(**settings))
    return lively(model).eval()


def lively(model: nn.Module, seed: int = 1) -> nn.Module:
    """Draw every parameter of `model` anew, in place, none of them near zero by rule."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim > 1 else 1.0 + 0.3 * noise)
    return model


def tokens(lengths: tuple[int, ...] = LENGTHS, width: int = 12, pad: int = PAD) -> Tensor:
    """Return ids [N, width], padded on the right."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, VOCABULARY, (len(lengths), width), generator=generator)
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = pad
    return ids


def whole_logits(model: Any, ids: Tensor, pad: int | None = PAD) -> tuple[Tensor, Tensor]:
    """Return the whole model's logits on the batch cut to its longest row, and the mask."""
    mask = torch.ones_like(ids) if pad is None else (ids != pad).long()
    longest = int(mask.sum(1).max())
    mask = mask[:, :longest]
    logits = model(input_ids=ids[:, :longest], attention_mask=mask, use_cache=False).logits
    return logits.float(), mask.bool()


def padded_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the whole model's logits as the halves give them: zero in padded positions."""
    logits, mask = whole_logits(model, ids)
    if logits.ndim == 2:
        return logits
    padded = logits.new_zeros(*ids.shape, logits.shape[-1])
    padded[:, : mask.shape[1]] = logits.masked_fill(~mask.unsqueeze(-1), 0.0)
    return padded


LANGUAGE_MODELS = tuple(
    Architecture(
        name.replace("-", "_"),
        functools.partial(build, name),
        named=(),
        inputs=tokens,
        whole=padded_logits,
    )
    for name in MODELS
)
"""The models for the benchmark of cuts; every block but the last is a legal cut."""
