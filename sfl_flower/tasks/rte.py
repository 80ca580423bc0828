"""RTE: whether a premise entails a hypothesis (Dagan et al., 2005 and later; GLUE)."""

from __future__ import annotations

from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import MINILM, Checkpoint
from sfl_flower.tasks.classification import Sentences, classification
from sfl_flower.tasks.images import data_folder
from sfl_flower.tasks.text import TextSet

__all__ = ["rte"]


def _end(_premise: str, hypothesis: str) -> str:
    return f"\nQuestion: {hypothesis} True or False?\nAnswer:"


_RTE = Sentences(
    name="rte",
    texts=TextSet(
        title="RTE",
        columns=("premise", "hypothesis", "label"),
        files={"train": "rte_train.csv.gz", "test": "rte_val.csv.gz"},
        hub=("nyu-mll/glue", "rte"),
        hub_columns=("sentence1", "sentence2", "label"),
        hub_splits={"train": "train", "test": "validation"},
    ),
    end=_end,
    words=("\nAnswer:", "True", "False"),
    most=(2490, 277),
)


def rte(
    model: str = MINILM,
    train_size: int | None = None,
    test_size: int | None = None,
    max_length: int = 128,
    cut: str = "block:2",
    head: str = "classifier",
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
    """Return the task: RTE on a transformer with LoRA adapters, tested on the validation set.

    Class 0 is entailment. Token types do not cross a cut: both sentences have type 0.

    Parameters
    ----------
    train_size, test_size : int, optional
        The first so many rows, 1 to 2490 and 1 to 277; all by default.
    head : {"classifier", "verbaliser"}
        A new classifier; or, for causal models, *True* and *False* behind the prompt
        "… Question: … True or False? Answer:".
    data_dir : str, optional
        Folder with ``rte_train.csv.gz`` and ``rte_val.csv.gz``, as for `sst2`.
    model, max_length, cut, lora_rank, lora_alpha, lora_targets, lora_init, base_dtype, dropout,
    attention, trained
        As for `sst2`.

    Raises
    ------
    ConfigError
        An option is out of its range.
    """
    checkpoint = Checkpoint(
        "rte", model, head, max_length, _RTE.words, lora_rank, lora_alpha, lora_targets,
        base_dtype, dropout, attention, lora_init=lora_init,
    )  # fmt: skip
    return classification(
        _RTE, data_folder(data_dir), train_size, test_size, cut, checkpoint, trained
    )
