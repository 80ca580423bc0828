"""Tiny checkpoints with a tokenizer of their own, and files of texts, in a test's folder."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sfl_flower.data import seeded_construction

__all__ = ["WORDS", "checkpoint", "write"]

WORDS = """a an the film it was is not good bad great terrible dull plot fun of and pub in near
true false true? false? question: answer: True False Question: Answer: || : | name eatType The
Vaults area riverside . , or or?""".split()
"""The vocabulary, behind the special tokens."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
_CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": (
        "BertConfig",
        "BertModel",
        {
            "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 32,
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "ffn_dim": 24,
            "max_position_embeddings": 32, "word_embed_proj_dim": 16,
        },
    ),
}  # fmt: skip


def checkpoint(folder: Path, kind: str, pad: bool = True, size: int | None = None) -> str:
    """Save a tiny model and its tokenizer, and return the folder's name.

    Parameters
    ----------
    folder : Path
        Where to.
    kind : {"bert", "gpt2", "llama", "opt"}
        The family. BERT's tokenizer frames a text by [CLS] and [SEP], the others add nothing.
    pad : bool
        Whether the tokenizer has a token for padding.
    size : int, optional
        Vocabulary of the model, that of the tokenizer by default.
    """
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, str] = {"unk_token": "[UNK]", "eos_token": "</s>"}
    if pad:
        names["pad_token"] = "[PAD]"
    if kind == "bert":
        marks = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=marks
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    config_name, model_name, sizes = _CONFIGS[kind]
    ids = {"bos_token_id": None, "eos_token_id": 4, "pad_token_id": 0 if kind != "gpt2" else None}
    config = getattr(transformers, config_name)(vocab_size=size or len(vocabulary), **sizes, **ids)
    with seeded_construction(5), torch.no_grad():
        model = getattr(transformers, model_name)(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return str(folder)


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a gzipped CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
