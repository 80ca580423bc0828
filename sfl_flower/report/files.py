"""Writing files that are complete or absent, and JSON that is equal for equal values."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sfl_flower.errors import ConfigError, DataError

__all__ = [
    "append_line",
    "atomic_write",
    "canonical_json",
    "config_digest",
    "plain",
    "read_json",
    "read_sealed",
    "remove_leftovers",
    "sync",
    "versions",
    "write_json",
    "write_sealed",
]

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)
"""What network and shared file systems answer that cannot write a directory through to the disk."""

_LEFTOVER = re.compile(
    r"\.(accuracy\.png|best\.safetensors|checkpoint(\.previous)?\.safetensors|config\.json"
    r"|history\.jsonl|journal\.bin|ledger\.json|model\.safetensors|summary\.json"
    r"|trackers\.json)\.[0-9]+\.tmp"
)
_SEAL = "sha256"

PACKAGES = ("flwr", "ray", "torch", "torchvision", "numpy")


def canonical_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON with sorted keys and no NaN: equal values give equal text.

    Dataclasses become objects, tuples lists, sets sorted lists, paths and enums their text or
    value.

    Raises
    ------
    ConfigError
        If a value has no such form, or is a float that is not finite.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        plain(value, "value"),
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=separators,
    )


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(_utf8(canonical_json(config))).hexdigest()


def _utf8(text: str) -> bytes:
    """Return JSON as bytes: a lone surrogate, as in the name of an odd file, as JSON's escape."""
    return text.encode("utf-8", errors="backslashreplace")


def plain(value: Any, where: str) -> Any:
    """Return the value as JSON has it: None, bool, int, float, str, list or dict.

    Parameters
    ----------
    value : Any
        See :func:`canonical_json`.
    where : str
        Its name in errors.

    Raises
    ------
    ConfigError
        If the value, or one inside it, has no JSON form.
    """
    if isinstance(value, Enum):
        return plain(value.value, where)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Integral):  # numpy's
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; only finite numbers can be written to JSON")
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ConfigError(
        f"{where} is a {type(value).__name__}, which has no JSON form; "
        "use numbers, text, lists, mappings, paths, enums or dataclasses"
    )


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step.

    Raises
    ------
    DataError
        If it cannot be written; what was at `path` is still there.
    """
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # safetensors makes files that their owner alone may read; all of a run are to be alike.
        tmp.touch()
        mode = tmp.stat().st_mode
        write(tmp)
        tmp.chmod(mode)
        sync(tmp)
        os.replace(tmp, path)
        sync(path.parent)  # the new name, too, must survive a power cut
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"Cannot write {path}: {why}; what was there before is unchanged. Make room, or see to "
            "it that the directory can be written, and resume."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove the halves of files that a process left which died while it wrote them.

    Parameters
    ----------
    directory : Path
        A run directory that nobody else writes to.
    """
    for path in directory.glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def append_line(path: Path, line: bytes, end: int | None = None) -> None:
    """Add a line to a file, made where there is none; it is on disk when this returns.

    Parameters
    ----------
    path : Path
        The file.
    line : bytes
        The line, with its end.
    end : int, optional
        Where the whole lines end: what stands behind, torn, goes.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    try:
        new = not path.exists()
        with open(path, "ab") as file:
            if end is not None:
                file.truncate(end)
            file.write(line)
        sync(path)
        if new:
            sync(path.parent)
    except OSError as error:
        raise DataError(
            f"Cannot write {path}: {error.strerror}. Make room, or see to it that the directory "
            "can be written, and resume."
        ) from error


def sync(path: Path) -> None:
    """Have a file or a directory written through to the disk, where its file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in NO_SYNC:  # Windows opens no directory
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON, indented, in one step."""
    data = _utf8(canonical_json(value, indent=2) + "\n")
    atomic_write(path, lambda tmp: tmp.write_bytes(data))


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with the digest of what else is in it, as its ``sha256``."""
    write_json(path, {**document, _SEAL: config_digest(document)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote; of an older file without a digest what is there.

    Raises
    ------
    DataError
        If it cannot be read, is no JSON object, or was changed.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no JSON object; put it back as it was.")
    seal = document.pop(_SEAL, None)
    if seal is not None and seal != _digest_or_none(document):
        raise DataError(
            f"{path} is damaged: what it says does not fit its '{_SEAL}'; put it back as it was, "
            "or resume the run, which writes it anew."
        )
    return document


def _digest_or_none(document: Mapping[str, Any]) -> str | None:
    with contextlib.suppress(ConfigError):  # JSON as Python reads it may hold NaN
        return config_digest(document)
    return None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    DataError
        If it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and what decides its numbers."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for key, name in {"sfl_flower": "sfl-flower", **{p: p for p in PACKAGES}}.items():
        try:
            found[key] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[key] = None
    return found
