"""Checkpoints of transformers, as the whole models of language tasks: head, adapters, precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from logging import CRITICAL
from typing import Any

import torch
from torch import nn

from sfl_flower.errors import ConfigError
from sfl_flower.split import Subspace, read_subspace
from sfl_flower.tasks.adapters import INITS, adapt
from sfl_flower.tasks.heads import HEADS, keep_words, train_heads
from sfl_flower.tasks.options import whole_number
from sfl_flower.tasks.quantised import quantise, quiet_imports
from sfl_flower.tasks.sources import MINILM, SMOLLM2, source

__all__ = ["CLASSIFIERS", "MINILM", "SMOLLM2", "Checkpoint"]

CLASSIFIERS = ("classifier", "pooled")
"""Heads that give a row's classes, drawn anew."""

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "int8": torch.float32,  # of what torchao leaves alone
}  # fmt: skip
_ENCODERS = ("bert", "roberta", "distilbert", "electra", "mpnet", "albert", "deberta-v2")
ATTENTIONS = ("auto", "sdpa", "eager")
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "summary_first_dropout", "dropout", "attention_dropout",
    "activation_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and what a task makes of it.

    Parameters
    ----------
    task : str
        The task's name, for errors.
    model : str
        ``minilm``, ``smollm2``, a GGUF file (dequantised when it is read), or a name or folder for
        transformers' ``from_pretrained``.
    head : {"classifier", "pooled", "verbaliser", "tokens"}
        What the model gives: class logits, as the model pools or of the mean over positions;
        logits of two words at every position; of all tokens.
    max_length : int
        Tokens of a row.
    words : tuple of str
        For a verbaliser: how a prompt ends, and the word that follows it for each class.
    lora_rank, lora_alpha : int
        Of the adapters; rank 0 trains the whole model.
    lora_targets : str
        Names of the linear layers that get one, by commas; those usual for the family if empty.
    base_dtype : {"float32", "bfloat16", "float16", "int8"}
        What frozen weights are kept in; int8 is for linear layers, the rest is float32 then.
    dropout : float
        Of every dropout layer of the model.
    attention : {"auto", "sdpa", "eager"}
        Which of transformers' implementations of attention runs.
    classes : int
        Of a classifier.
    lora_init : {"default", "eva"}
        What the adapters' A are at the start; see `sfl_flower.tasks.eva`.

    Raises
    ------
    ConfigError
        An option is out of its range.
    """

    task: str
    model: str
    head: str
    max_length: int
    words: tuple[str, ...] = ()
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_targets: str = ""
    base_dtype: str = "float32"
    dropout: float = 0.0
    attention: str = "auto"
    classes: int = 2
    lora_init: str = "default"

    def __post_init__(self) -> None:
        whole_number(self.task, "max_length", self.max_length, 2, 1_000_000)
        whole_number(self.task, "lora_rank", self.lora_rank, 0, 4096)
        whole_number(self.task, "lora_alpha", self.lora_alpha, 1, 1_000_000)
        if self.base_dtype not in DTYPES:
            raise self._wrong("base_dtype", f"one of {', '.join(DTYPES)}")
        if self.lora_init not in INITS:
            raise self._wrong("lora_init", f"one of {', '.join(INITS)}")
        if self.lora_init != "default" and not self.lora_rank:
            raise self._wrong(
                "lora_init",
                "default where lora_rank is 0, for there are no adapters; set lora_rank",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise self._wrong("dropout", "in [0, 1)")
        if self.attention not in ATTENTIONS:
            raise self._wrong("attention", f"one of {', '.join(ATTENTIONS)}")

    def check_trained(self, trained: str) -> None:
        """Refuse weights in low precision that are to be trained: no adapters', no subspace's.

        Raises
        ------
        ConfigError
            It is so, or the server would have nothing to train.
        """
        if self.base_dtype == "float32" or self.lora_rank:
            return
        alone = "float32 where lora_rank is 0 and"
        if not isinstance(read_subspace(trained), Subspace):
            legal = f"{alone} trained is '{trained}': all weights are trained; set lora_rank, or "
            raise self._wrong("base_dtype", f"{legal}train a subspace (subspace:4 or core:4)")
        if self.head not in CLASSIFIERS:
            legal = f"{alone} the head is {self.head}: the server would have nothing to train; set "
            raise self._wrong("base_dtype", f"{legal}lora_rank, or take a head that is trained")

    def _wrong(self, option: str, legal: str) -> ConfigError:
        return ConfigError(
            f"Option {option!r} of task {self.task!r} is {getattr(self, option)!r}; it must be "
            f"{legal}."
        )

    @property
    def token(self) -> str:
        """Name the model, for what a process keeps of a task."""
        return repr(self)

    def tokenizer(self) -> Any:
        """Return the checkpoint's tokenizer.

        Raises
        ------
        ConfigError
            There is none, or it names no token for padding.
        """
        return _tokenizer(self.model)

    def config(self) -> Any:
        """Return the checkpoint's configuration, with the id of padding and `dropout`.

        Raises
        ------
        ConfigError
            It cannot be loaded, has fewer positions than `max_length`, does not suit the head, or
            does not know the token of padding.
        """
        config = copy.deepcopy(_config(self.model))
        config.pad_token_id = pad_id(self.tokenizer())
        self._known("its padding", config.pad_token_id)
        if self.head == "pooled" and config.model_type != "bert":
            raise ConfigError(
                f"Option 'head' of task {self.task!r} is pooled, which is for BERT, but the "
                f"checkpoint {self.model!r} is a {config.model_type}; use head=classifier."
            )
        if self.head in ("verbaliser", "tokens") and config.model_type in _ENCODERS:
            raise ConfigError(
                f"The checkpoint {self.model!r} is an encoder ({config.model_type}), which does "
                f"not continue a text as task {self.task!r} needs here; use a causal model (GPT-2, "
                "OPT, Llama, Qwen, Gemma), or head=classifier where the task has it."
            )
        positions = _positions(config)
        if positions is not None and self.max_length > positions:
            raise ConfigError(
                f"Option 'max_length' of task {self.task!r} is {self.max_length}, but the "
                f"checkpoint {self.model!r} has {positions} positions; it must be at most that."
            )
        for name in _DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, self.dropout)
        if hasattr(config, "layerdrop"):
            config.layerdrop = 0.0
        return config

    def build(self) -> nn.Module:
        """Return the whole model; new parts are drawn from torch's generator as it stands.

        Raises
        ------
        ConfigError
            The checkpoint cannot be loaded, or has no layer for the adapters or to quantise.
        """
        config = self.config()
        attention = {} if self.attention == "auto" else {"attn_implementation": self.attention}
        with _loading(self.model, "checkpoint"):
            import transformers

            kind: Any = transformers.AutoModelForCausalLM
            if self.head in CLASSIFIERS:
                kind = transformers.AutoModelForSequenceClassification
                config.num_labels = self.classes
            if self.head == "pooled":
                from sfl_flower.tasks.mean_pooled import MeanPooledBert

                kind = MeanPooledBert
            where = source(self.model)
            # transformers shows a bar while it reads a GGUF file, whatever its settings.
            quiet = redirect_stderr(StringIO()) if "gguf_file" in where else nullcontext()
            with quiet:
                model: nn.Module = kind.from_pretrained(
                    config=config, use_safetensors=True, dtype=DTYPES[self.base_dtype],
                    **attention, **where,
                )  # fmt: skip
        model = model.train()
        if self.head == "verbaliser":
            keep_words(model, self.word_ids())
        if self.lora_rank:
            rank, alpha = self.lora_rank, self.lora_alpha
            adapt(model, config.model_type, rank, alpha, self.lora_targets, HEADS, self.lora_init)
            train_heads(model)
        elif self.base_dtype != "float32":  # layers of the client half move in a subspace
            model.requires_grad_(False)
            train_heads(model)
        if self.base_dtype == "int8":
            self._quantise(model)
        return model

    def _quantise(self, model: nn.Module) -> None:
        if any(type(module).__name__ == "Conv1D" for module in model.modules()):
            raise self._wrong(
                "base_dtype",
                f"float32, bfloat16 or float16 for the checkpoint {self.model!r}, whose linear "
                "layers (Conv1D) torchao does not quantise",
            )
        quantise(model)

    def word_ids(self) -> list[int]:
        """Return the token of each class' word.

        Raises
        ------
        ConfigError
            A word is more than one token or one the model does not know, or two are the same.
        """
        tokenizer, (end, *words) = self.tokenizer(), self.words
        before = tokenizer(end, add_special_tokens=False)["input_ids"]
        found = []
        for word in words:
            ids = tokenizer(f"{end} {word}", add_special_tokens=False)["input_ids"]
            if ids[:-1] != before:
                raise ConfigError(
                    f"The word {word!r} is not one token of the checkpoint {self.model!r}; use "
                    f"head=classifier with task {self.task!r}."
                )
            self._known(f"the word {word!r}", ids[-1])
            found.append(ids[-1])
        if len(set(found)) < len(found):
            raise ConfigError(
                f"The words {', '.join(words)} are the same token of the checkpoint "
                f"{self.model!r}; use head=classifier with task {self.task!r}."
            )
        return found

    def _known(self, what: str, token: int) -> None:
        """Refuse a tokenizer that is larger than the model."""
        vocabulary = _config(self.model).vocab_size
        if token >= vocabulary:
            raise ConfigError(
                f"The tokenizer of the checkpoint {self.model!r} gives {what} the id {token}, but "
                f"the model knows only 0 to {vocabulary - 1}: its tokenizer is larger than the "
                "model; use the tokenizer that belongs to it, or call resize_token_embeddings on "
                "the model and save it again."
            )


def pad_id(tokenizer: Any) -> int:
    """Return the id of padding: the tokenizer's own, else that of the end of a text.

    Raises
    ------
    ConfigError
        It has neither.
    """
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise ConfigError(
        f"The tokenizer of {tokenizer.name_or_path!r} has neither a pad_token nor an eos_token; "
        "save it with a pad_token."
    )


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Any:
    with _loading(model, "tokenizer"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(**source(model))


@lru_cache(maxsize=4)
def _config(model: str) -> Any:
    with _loading(model, "configuration"):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(**source(model))


@contextmanager
def _loading(model: str, what: str) -> Iterator[None]:
    """Keep transformers' bars and reports off the screen, and say what failed in one sentence."""
    try:
        with quiet_imports():
            from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            "Language tasks need transformers and peft; run `pip install 'sfl-flower[language]'`."
        ) from error
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        with quiet_imports():
            yield
    except ConfigError:
        raise
    except Exception as error:  # transformers, its hub client and safetensors each have their own
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ConfigError(
            f"The {what} of {model!r} cannot be loaded ({type(error).__name__}: {reason}); name a "
            "folder with config.json, tokenizer files and model.safetensors in task.model, or a "
            "checkpoint of the hub where the internet is reachable."
        ) from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _positions(config: Any) -> int | None:
    found = getattr(config, "max_position_embeddings", None)
    if found is not None and "roberta" in config.model_type:  # its first position follows padding
        found -= config.pad_token_id + 1
    return found
