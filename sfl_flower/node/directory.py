"""Where the nodes of a machine keep files: whose directory it is, and what is ever removed.

Below the root stand a directory for each run and one for the division of the data.  Each is made
here, for its owner alone, and carries a mark; whatever has no mark belongs to somebody else and is
left as it is, however old.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sfl_flower.errors import ConfigError, DataError

__all__ = [
    "arrays_digest",
    "check_owner",
    "own_directory",
    "read_arrays",
    "remove_old",
    "state_root",
    "write_arrays",
]

KEEP_SECONDS = 7 * 24 * 3600
"""Marked directories are removed when nothing in them changed for this long."""
MARK = ".sfl_flower"
MARK_TEXT = "Made by sfl_flower for the state of its clients; removed when idle for a week.\n"
_ELSEWHERE = "set SFL_STATE_DIR to a directory of your own"
_WRITTEN = ("*.safetensors", "*.tmp", ".tmp*", "*.bin", MARK)
"""The names of files in a marked directory; the third is of safetensors while it writes."""


def state_root() -> Path:
    """Return the node-local directory for large state: `SFL_STATE_DIR`, or a temporary one.

    Raises
    ------
    ConfigError
        If the temporary one is there already and somebody else may write to it: its name is no
        secret, and what is read from it is trusted.
    """
    named = os.environ.get("SFL_STATE_DIR")
    if named:
        return Path(named).expanduser()
    root = _default_root()
    check_owner(root)
    return root


def _default_root() -> Path:
    return Path(tempfile.gettempdir()) / f"sfl_flower-{os.getuid()}"


def own_directory(path: Path) -> Path:
    """Return this directory below `state_root`, made and marked where it was not there.

    Parameters
    ----------
    path : Path
        A child of `state_root()`.

    Raises
    ------
    ConfigError
        If it, or the temporary `state_root`, is a link or a file, belongs to another user, or
        others may write to it; or if it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.parent == _default_root():
            check_owner(path.parent)  # somebody else may have made it since
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            check_owner(path)
        else:
            (path / MARK).write_text(MARK_TEXT)
            remove_old(path)
    except OSError as error:
        raise ConfigError(
            f"The directory {path} for a client's state cannot be made ({error.strerror}); set "
            "SFL_STATE_DIR to a directory that this user may write to."
        ) from error
    return path


def check_owner(path: Path, what: str = "a client's state", remedy: str = _ELSEWHERE) -> None:
    """Refuse a path that is there and is not a directory of this user's alone.

    Parameters
    ----------
    path : Path
        The directory.
    what : str
        What it is for.
    remedy : str
        What to do in place of removing it.

    Raises
    ------
    ConfigError
        If it is a link or a file, belongs to another user, or others may write to it.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    kind = "a link" if stat.S_ISLNK(found.st_mode) else "no directory"
    if not stat.S_ISDIR(found.st_mode):
        problem = kind
    elif found.st_uid != os.getuid():
        problem = f"a directory of another user (id {found.st_uid})"
    elif found.st_mode & 0o022:
        problem = f"a directory that others may write to (mode {found.st_mode & 0o777:04o})"
    else:
        return
    raise ConfigError(
        f"{path} is {problem}; {what} needs a directory of this user that nobody else may write "
        f"to. Remove it, or {remedy}."
    )


def remove_old(current: Path) -> None:
    """Remove marked directories beside this one that are idle, and in them only files of ours."""
    for directory in current.parent.iterdir():
        with contextlib.suppress(OSError):
            idle = time.time() - directory.stat().st_mtime
            if directory == current or idle <= KEEP_SECONDS or not _is_marked(directory):
                continue
            for pattern in _WRITTEN:
                for file in directory.glob(pattern):
                    file.unlink()
            directory.rmdir()


def _is_marked(directory: Path) -> bool:
    mark = directory / MARK
    for path, is_kind in ((directory, stat.S_ISDIR), (mark, stat.S_ISREG)):
        found = os.lstat(path)
        if not is_kind(found.st_mode) or found.st_uid != os.getuid():
            return False
    return mark.read_bytes() == MARK_TEXT.encode()


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a digest of named arrays to the bit, 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file that only its owner reads, complete or not at all.

    Parameters
    ----------
    path : Path
        The file, in an `own_directory`.
    arrays : Mapping[str, numpy.ndarray]
        The arrays.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file({key: np.asarray(value, order="C") for key, value in arrays.items()}, partial)
        partial.chmod(0o600)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(
            f"A client's state cannot be written to {path} ({error}); free space there, or set "
            "SFL_STATE_DIR to a directory on another disk."
        ) from error


def read_arrays(path: Path, digest: str = "") -> dict[str, np.ndarray] | None:
    """Return the arrays of a file, None where it is lost or is not what was written.

    Parameters
    ----------
    path : Path
        The file.
    digest : str
        `arrays_digest` of what was written; without one the arrays are not compared.
    """
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError):
        return None
    return arrays if not digest or arrays_digest(arrays) == digest else None
