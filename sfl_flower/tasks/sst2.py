"""SST-2: sentences of film reviews, positive or negative (Socher et al., 2013; GLUE)."""

from __future__ import annotations

from dataclasses import replace

from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import MINILM, Checkpoint
from sfl_flower.tasks.classification import Sentences, classification
from sfl_flower.tasks.images import data_folder
from sfl_flower.tasks.options import whole_number
from sfl_flower.tasks.text import TextSet

__all__ = ["SST2", "public_last", "sst2"]


def _end(_sentence: str) -> str:
    return " It was"


TEXTS = TextSet(
    title="SST-2",
    columns=("sentence", "label"),
    files={"train": "sst2_train.csv.gz", "test": "sst2_dev.csv.gz"},
    hub=("nyu-mll/glue", "sst2"),
    hub_columns=("sentence", "label"),
    hub_splits={"train": "train", "test": "validation"},
)
"""Where its rows are."""
SST2 = Sentences(
    name="sst2",
    texts=TEXTS,
    end=_end,
    words=(" It was", "terrible", "great"),
    most=(67_349, 872),
)
"""The data set; its prompt and words are those of MeZO."""


def public_last(task: str, public_size: int) -> TextSet:
    """Return where the rows of SST-2 are, of which the last `public_size` are the public ones.

    Raises
    ------
    ConfigError
        `public_size`, an option of the task of that name, leaves no row, or is none.
    """
    whole_number(task, "public_size", public_size, 1, 67_348)
    return replace(TEXTS, public=public_size)


def sst2(
    model: str = MINILM,
    train_size: int | None = None,
    test_size: int | None = None,
    max_length: int = 64,
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
    public_size: int = 64,
) -> SplitTask:
    """Return the task: SST-2 on a transformer with LoRA adapters, tested on the development set.

    Parameters
    ----------
    model : str
        A checkpoint: ``minilm``, ``smollm2``, a GGUF file, or a name or folder for transformers'
        ``from_pretrained``.
    train_size, test_size : int, optional
        The first so many rows, 1 to 67 349 and 1 to 872; all by default.
    max_length : int
        Tokens of a row: longer ones are cut short, shorter ones padded.
    cut : str
        ``block:N``, behind N blocks, or a block's name.
    head : {"classifier", "pooled", "verbaliser"}
        A new classifier on an encoder or a causal model; one on the mean of an encoder's last
        hidden states; or, for causal models, the words *great*
        and *terrible* behind the prompt "… It was", as in MeZO.
    lora_rank : int
        Rank of the adapters (`sfl_flower.tasks.adapters.adapt`); 0 trains the whole model.
    lora_alpha : int
        Scale of the adapters, over their rank.
    lora_targets : str
        Names of the layers that get an adapter, by commas; those of the family by default.
    lora_init : {"default", "eva"}
        With ``eva`` A is frozen, in the leading directions of what enters its layer on the public
        rows (`sfl_flower.tasks.eva`), and B alone is trained.
    base_dtype : {"float32", "bfloat16", "float16", "int8"}
        What the frozen weights are kept in; int8 is for linear layers, the rest is float32 then.
    dropout : float
        Of the whole model. Clients that only run forwards need 0.
    attention : {"auto", "sdpa", "eager"}
        Which of transformers' implementations runs; on CPUs ``eager`` is the fastest in bfloat16.
    data_dir : str, optional
        Folder with ``sst2_train.csv.gz`` and ``sst2_dev.csv.gz``. By default the environment
        variable ``SFL_DATA_DIR``, else ``~/.cache/sfl_flower``; Hugging Face's datasets where the
        files are not there.
    trained : str
        Which client parameters are trained, of those that the model trains; see `SplitTask`. The
        directions of a subspace are those of the public rows.
    public_size : int
        The last so many training rows are nobody's, the public ones; `train_size` must leave them.

    Raises
    ------
    ConfigError
        An option is out of its range, or `trained` is no choice of parameters.
    """
    checkpoint = Checkpoint(
        "sst2", model, head, max_length, SST2.words, lora_rank, lora_alpha, lora_targets,
        base_dtype, dropout, attention, lora_init=lora_init,
    )  # fmt: skip
    data = replace(SST2, texts=public_last("sst2", public_size))
    return classification(
        data, data_folder(data_dir), train_size, test_size, cut, checkpoint, trained
    )
