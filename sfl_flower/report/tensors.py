"""Named tensors on disk: safetensors files that notice when a bit of them has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfl_flower.errors import DataError
from sfl_flower.report.files import atomic_write

__all__ = ["load_tensors", "save_tensors", "tensor_digest"]

_DIGESTS, _SUM = "digests", "sha256"


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256, in hex, of a CPU tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sum(header: Mapping[str, str]) -> str:
    own = {name: value for name, value in header.items() if name != _SUM}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file in one step.

    Parameters
    ----------
    path : Path
        The file.
    tensors : Mapping[str, Tensor]
        Any shapes and dtypes.
    header : Mapping[str, str]
        Becomes its metadata, beside the SHA-256 of each tensor (``digests``, as JSON) and of the
        metadata themselves (``sha256``).

    Raises
    ------
    DataError
        If it cannot be written; the old file is then unchanged.
    """
    # Cloned, because safetensors refuses tensors that share storage (tied weights, views).
    own = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }
    digests = {name: tensor_digest(value) for name, value in own.items()}
    metadata = {**header, _DIGESTS: json.dumps(digests, sort_keys=True)}
    metadata[_SUM] = _sum(metadata)

    def write(tmp: Path) -> None:
        save_file(own, tmp, metadata=metadata)
        _sort_metadata(tmp)

    atomic_write(path, write)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: they are written in another one each time.

    So equal tensors and metadata give equal files.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # never over the tensors behind it
            file.seek(8)
            file.write(text.ljust(size))


def load_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `save_tensors` onto the CPU and check every bit of it.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        Its name in errors.

    Returns
    -------
    tensors : dict[str, Tensor]
        The tensors.
    header : dict[str, str]
        What `save_tensors` was given.

    Raises
    ------
    DataError
        If the file is missing or damaged; the message names the tensor that is.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"Cannot read {what} {path}: {error}.") from error
    if header.pop(_SUM, "") != _sum(header):
        raise DataError(
            f"Cannot read {what} {path}: it is damaged; its metadata do not fit their digest."
        )
    try:
        digests = dict(json.loads(header.pop(_DIGESTS)))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"Cannot read {what} {path}: it is damaged; its metadata hold no digests of tensors."
        ) from error
    wrong = sorted(
        name
        for name in tensors.keys() | digests.keys()
        if name not in tensors or tensor_digest(tensors[name]) != digests.get(name)
    )
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise DataError(
            f"Cannot read {what} {path}: it is damaged; tensor '{wrong[0]}'{more} does not fit its "
            "digest."
        )
    return tensors, header
