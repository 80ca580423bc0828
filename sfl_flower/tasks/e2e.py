"""E2E: sentences about restaurants from a table of their properties (Novikova et al., 2017)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from sfl_flower.data import Samples
from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import Checkpoint, pad_id
from sfl_flower.tasks.eva import first_directions
from sfl_flower.tasks.images import data_folder
from sfl_flower.tasks.options import whole_number
from sfl_flower.tasks.text import SETS, Split, TextSet, continued, padded, samples
from sfl_flower.training.measures import IGNORED, token_accuracy

__all__ = ["e2e", "sentences"]

_TEXTS = TextSet(
    title="E2E",
    columns=("mr", "ref"),
    files={"train": "e2e_train.csv.gz", "test": "e2e_test.csv.gz"},
    hub=("tuetschek/e2e_nlg",),
    hub_columns=("meaning_representation", "human_reference"),
    hub_splits={"train": "train", "test": "test"},
    revision="refs/convert/parquet",  # the data set itself is a script, which datasets refuses
)
_PROPERTY = re.compile(r"\s*([^,\[\]]+)\[([^\]]*)\]\s*(?:,|$)")


def e2e(
    model: str = "gpt2",
    train_size: int | None = None,
    test_size: int | None = None,
    max_length: int = 128,
    cut: str = "block:3",
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_targets: str = "",
    lora_init: str = "default",
    base_dtype: str = "float32",
    dropout: float = 0.0,
    attention: str = "auto",
    data_dir: str | None = None,
    trained: str = "all",
) -> SplitTask:
    """Return the task: E2E on a causal model with LoRA adapters.

    A row is "name : The Vaults | eatType : pub || The Vaults is a pub." and the token that ends a
    text. Labels are the next tokens behind the bars. The metric is the share of these that are
    the most likely ones; e to the power of the loss is the perplexity.

    Parameters
    ----------
    train_size, test_size : int, optional
        The first so many rows, 1 to 42 061 and 1 to 4693; all by default.
    data_dir : str, optional
        Folder with ``e2e_train.csv.gz`` and ``e2e_test.csv.gz``, as for `sst2`.
    model, max_length, cut, lora_rank, lora_alpha, lora_targets, lora_init, base_dtype, dropout,
    attention, trained
        As for `sst2`.

    Raises
    ------
    ConfigError
        An option is out of its range, or the checkpoint cannot be loaded.
    """
    checkpoint = Checkpoint(
        "e2e", model, "tokens", max_length, (), lora_rank, lora_alpha, lora_targets, base_dtype,
        dropout, attention, lora_init=lora_init,
    )  # fmt: skip
    return sentences(checkpoint, data_folder(data_dir), train_size, test_size, cut, trained)


def sentences(
    checkpoint: Checkpoint,
    root: Path,
    train_size: int | None,
    test_size: int | None,
    cut: str,
    trained: str,
) -> SplitTask:
    """Return E2E on a checkpoint, under the name of the checkpoint's task.

    Parameters
    ----------
    checkpoint : Checkpoint
        A causal model.
    root : Path
        Folder of the files.
    train_size, test_size, cut, trained
        As for `e2e`.

    Raises
    ------
    ConfigError
        A size is out of its range, or the checkpoint cannot be loaded.
    """
    for option, value, most in (("train_size", train_size, 42_061), ("test_size", test_size, 4693)):
        if value is not None:
            whole_number(checkpoint.task, option, value, 1, most)
    checkpoint.check_trained(trained)
    load = partial(_load, root, checkpoint)
    public = partial(load, "public", train_size)
    return SplitTask(
        name=checkpoint.task,
        model=checkpoint.build,
        cut=cut,
        train=partial(load, "train", train_size),
        test=partial(load, "test", test_size),
        public=public,
        first_buffers=first_directions(checkpoint, public),
        classes=checkpoint.config().vocab_size,
        metrics={"accuracy": token_accuracy},
        ignore_label=IGNORED,
        trained=trained,
        token=f"{checkpoint.task}:{root.absolute()}:{train_size}:{test_size}:{cut}:"
        f"{checkpoint.token}",
    )


def _load(root: Path, checkpoint: Checkpoint, split: Split, size: int | None) -> Samples:
    where = f"the {SETS[split]} set of task {checkpoint.task!r}"
    config, tokenizer = checkpoint.config(), checkpoint.tokenizer()
    tables, sentences = zip(*_TEXTS.load(root, split, size), strict=True)
    prompts = [_prompt(table) for table in tables]
    texts = [f" {sentence.strip()}" for sentence in sentences]
    rows, y = continued(tokenizer, prompts, texts, checkpoint.max_length, where)
    x = padded(rows, checkpoint.max_length, pad_id(tokenizer), config.vocab_size, where)
    return samples(x, y)


def _prompt(table: str) -> str:
    """Turn "name[The Vaults], eatType[pub]" into "name : The Vaults | eatType : pub ||"."""
    found = _PROPERTY.findall(table)
    return " | ".join(f"{name} : {value}" for name, value in found) + " ||" if found else ""
