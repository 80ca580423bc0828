"""The checkpoints of a run: the last one, and the one before it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfl_flower.errors import ConfigError, DataError, SflError
from sfl_flower.report.files import canonical_json, sync
from sfl_flower.report.history_file import HistoryFile
from sfl_flower.report.tensors import load_tensors, save_tensors

__all__ = ["LAST", "PREVIOUS", "Checkpoints", "load_own"]

LAST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


class Checkpoints:
    """Two generations of a file with tensors and plain values, so that one is always whole.

    Parameters
    ----------
    directory : Path
        The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.last, self.previous = directory / LAST, directory / PREVIOUS

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint; the last one becomes the previous one.

        Parameters
        ----------
        tensors : Mapping[str, Tensor]
            Any shapes and dtypes.
        meta : Mapping[str, Any]
            JSON values: round, counters, digests.

        Raises
        ------
        DataError
            If it cannot be written; both generations are then whole.
        """
        if self.last.exists():
            # Under a second name first: at no moment is there no checkpoint.
            kept = self.previous.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
            try:
                _link(self.last, kept)
                os.replace(kept, self.previous)
            except OSError as error:
                raise DataError(f"Cannot write {self.previous}: {error.strerror}.") from error
            finally:
                kept.unlink(missing_ok=True)
        save_tensors(self.last, tensors, {"meta": canonical_json(meta)})

    def load(self, previous: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the last or the previous checkpoint onto the CPU and check every bit of it.

        Raises
        ------
        DataError
            If it is missing or damaged; the message names what is wrong, and the previous
            generation where that one can be used.
        """
        if previous:
            return _read(self.previous)
        try:
            return _read(self.last)
        except DataError as error:
            raise self.without(str(error)) from error

    def fall_back(self) -> None:
        """Put the previous checkpoint in the place of the last one."""
        try:
            os.replace(self.previous, self.last)
            sync(self.last.parent)
        except OSError as error:
            raise DataError(f"Cannot rename {self.previous}: {error.strerror}.") from error

    def without(self, problem: str) -> DataError:
        """Return the error for a last checkpoint that cannot be used, with what to do.

        Parameters
        ----------
        problem : str
            A sentence.
        """
        try:
            _, meta = _read(self.previous)
        except DataError:
            rest = f"{problem} There is no whole {PREVIOUS} either; start anew in another directory"
            return DataError(f"{rest} with out=.", shell=f"{rest} with --out.")
        rest = f"{problem} {PREVIOUS} of round {meta.get('round')} is whole:"
        return DataError(
            f"{rest} resume='previous' goes on from there.",
            shell=f"{rest} --resume previous goes on from there.",
        )


def load_own(
    checkpoints: Checkpoints, history: HistoryFile, config: str, previous: bool
) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Read a checkpoint and hold the other files of its run directory against it.

    Parameters
    ----------
    checkpoints, history : Checkpoints, HistoryFile
        Of one run directory.
    config : str
        Digest of what a resume must not change of the configuration given; empty without one.
    previous : bool
        Whether to read the one before the last.

    Returns
    -------
    tensors, meta : dict
        What the run gave `RunDirectory.save_checkpoint`.
    lines : int
        Lines of the history up to the checkpoint; 0 where there is no history any more.

    Raises
    ------
    DataError
        If a file is missing or damaged; the message offers the checkpoint before the last where
        that one and its part of the history are whole.
    ConfigError
        If the checkpoint belongs to another configuration.
    """
    tensors, meta = checkpoints.load(previous)
    path = checkpoints.last.parent
    try:
        own = meta.pop("directory")
        theirs, state = str(own["config"]), dict(own["history"])
        count, digest = int(state["lines"]), str(state["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The checkpoint in {path} does not say which configuration and history it belongs to; "
            "resume with the release that wrote it, or start anew in another directory."
        ) from error
    if config and config != theirs:
        raise ConfigError(
            f"The checkpoint in {path} belongs to a run with other options than those given, and "
            "there is no config.json to say which; use those it was started with."
        )
    try:
        return tensors, meta, history.own(count, digest)
    except DataError as error:
        if previous:
            raise
        try:
            _, before, _ = load_own(checkpoints, history, config, previous=True)
        except SflError:
            raise error from None
        rest = f"{error} Up to round {before.get('round')} they are whole, and so is {PREVIOUS}:"
        raise DataError(
            f"{rest} resume='previous' goes on from there.",
            shell=f"{rest} --resume previous goes on from there.",
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path, "the checkpoint")
    try:
        meta = json.loads(header["meta"])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read the checkpoint {path}: it holds no 'meta'.") from error
    if not isinstance(meta, dict):
        raise DataError(f"Cannot read the checkpoint {path}: its 'meta' is no object.")
    return tensors, meta


def _link(old: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:  # a file system without hard links
        shutil.copyfile(old, new)
        sync(new)
