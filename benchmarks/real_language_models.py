"""Language models of real size with random weights, for the benchmark of cuts and its test."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.architectures import Architecture

__all__ = ["REAL_LANGUAGE_MODELS"]

AT = "block:3"
PAD, LENGTHS, WIDTH = 1, (9, 24, 3), 24

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "opt_125m": ("OPTConfig", "OPTForCausalLM", {}),
    "bert_base": ("BertConfig", "BertForSequenceClassification", {}),
    "roberta_base": (
        "RobertaConfig", "RobertaForSequenceClassification", {"max_position_embeddings": 514},
    ),
    "gemma3_270m": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048,
            "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 256,
        },
    ),
    "qwen2_500m": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {
            "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "llama32_1b": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 64, "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip
"""Name -> configuration, model, and what of the configuration is not transformers' default."""


def _build(name: str) -> nn.Module:
    config_name, kind, values = CONFIGS[name]
    config = getattr(transformers, config_name)(**{**values, "pad_token_id": PAD})
    # bfloat16 halves the memory, and keeps a cut's bits as any other type does.
    model: nn.Module = getattr(transformers, kind)._from_config(config, dtype=torch.bfloat16)
    return model


def _tokens() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 30_000, (len(LENGTHS), WIDTH), generator=generator)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[length:] = PAD
    return ids


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the whole model's logits as the halves give them: float32, zero in padding."""
    mask = ids != PAD
    logits: Tensor = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    if logits.ndim == 2:
        return logits.float()
    return logits.float().masked_fill(~mask.unsqueeze(-1), 0.0)


REAL_LANGUAGE_MODELS = tuple(
    Architecture(
        f"real_{name}",
        functools.partial(_build, name),
        named=(),
        inputs=_tokens,
        whole=_logits,
        only=(AT,),
    )
    for name in CONFIGS
)
"""One model of each family."""
