"""The directory a run leaves behind: everything readable, nothing pickled, nothing half written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report.events import EventWriter
from sfl_flower.report.files import (
    atomic_write,
    canonical_json,
    config_digest,
    plain,
    read_json,
    save_tensors,
    versions,
    write_json,
)
from sfl_flower.report.history import History, RoundRecord
from sfl_flower.report.plots import accuracy_plot
from sfl_flower.report.table import Summary

__all__ = ["RunDirectory"]

MAY_CHANGE = frozenset({"rounds", "out", "resume"})


class RunDirectory:
    """A directory with one run in it; see ``docs/run-directory.md`` for every file.

    Use :meth:`create` to start or resume a run, the constructor to read a finished one.

    Parameters
    ----------
    path : Path or str
        The directory.
    tensorboard : bool
        Whether :meth:`append` also writes TensorBoard events.
    """

    def __init__(self, path: Path | str, *, tensorboard: bool = True) -> None:
        self.path = Path(path)
        self._events = EventWriter(self.path / "tensorboard") if tensorboard else None

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        may_change: Collection[str] = MAY_CHANGE,
        tensorboard: bool = True,
    ) -> RunDirectory:
        """Make the directory and write ``config.json``.

        Parameters
        ----------
        path : Path or str
            Made when it does not exist.
        config : mapping
            The resolved configuration: plain values, dataclasses, paths, enums.
        resume : bool
            Go on with the run that is there, if one is.
        may_change : collection of str
            Top-level keys that a resumed run may set differently.
        tensorboard : bool
            Whether to write TensorBoard events.

        Raises
        ------
        ConfigError
            If a run is there and `resume` is false, or its configuration differs in another key
            than `may_change` allows, or the path is not a usable directory.
        """
        run = cls(path, tensorboard=tensorboard)
        resolved = plain(config, "config")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"Cannot make the run directory {run.path}: {error.strerror}; choose another"
            raise ConfigError(f"{problem} with out=.", shell=f"{problem} with --out.") from error
        if run._occupied():
            if not resume:
                problem = f"{run.path} already holds a run; choose another directory with"
                raise ConfigError(
                    f"{problem} out=, or go on with that run with resume=True.",
                    shell=f"{problem} --out, or go on with that run with --resume.",
                )
            run.check_same(resolved, may_change)
            run._mend_history()
            (run.path / "summary.json").unlink(missing_ok=True)
        write_json(
            run.path / "config.json",
            {
                "config": resolved,
                "seed": resolved.get("seed"),
                "sha256": config_digest(resolved),
                "versions": versions(),
            },
        )
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration in ``config.json``."""
        document = read_json(self.path / "config.json")
        try:
            return dict(document["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.path / 'config.json'} has no object 'config'") from error

    @property
    def history(self) -> History:
        """The records in ``history.jsonl``; empty when there are none."""
        path = self.path / "history.jsonl"
        return History.load(path) if path.exists() else History()

    def check_same(self, config: Mapping[str, Any], may_change: Collection[str] = ()) -> None:
        """Refuse a configuration that is not the one in ``config.json``.

        Parameters
        ----------
        config : mapping
            Plain values.
        may_change : collection of str
            Top-level keys that may differ.

        Raises
        ------
        ConfigError
            If another key differs; the message lists what was and what is asked for.
        """
        old = self.config
        changed = sorted(
            key
            for key in old.keys() | config.keys()
            if key not in may_change and old.get(key) != config.get(key)
        )
        if changed:
            what = ", ".join(f"{k}: {old.get(k)!r} -> {config.get(k)!r}" for k in changed)
            problem = (
                f"Cannot resume {self.path} with another configuration ({what}); use the old "
                "values, or start anew in another directory with"
            )
            raise ConfigError(f"{problem} out=.", shell=f"{problem} --out.")

    def append(self, record: RoundRecord) -> None:
        """Add one line to ``history.jsonl``, flushed, and the TensorBoard scalars."""
        # A lone surrogate in a note becomes the JSON escape instead of an encoding error.
        path = self.path / "history.jsonl"
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(record.to_json() + "\n")
        if self._events is not None:
            self._events.write(record)

    def truncate(self, last_round: int) -> History:
        """Drop the records after `last_round` (a resume from that checkpoint); return the rest."""
        self.close()  # so that the next events purge those of the dropped rounds
        kept = History(record for record in self.history if record.round <= last_round)
        self._rewrite_history(kept)
        return kept

    def write_ledger(self, ledger: Mapping[str, Any]) -> None:
        """Write ``ledger.json`` (bytes as whole numbers)."""
        write_json(self.path / "ledger.json", ledger)

    def load_ledger(self) -> dict[str, Any]:
        """Read ``ledger.json``."""
        return dict(read_json(self.path / "ledger.json"))

    def write_summary(self, summary: Summary, facts: Mapping[str, Any]) -> None:
        """Write ``summary.json``, which says that the run is complete.

        Parameters
        ----------
        summary : Summary
            The outcome.
        facts : mapping
            What must be equal in runs that are compared and is not in the configuration.
        """
        write_json(self.path / "summary.json", {**summary.to_dict(), "facts": facts})

    def load_summary(self) -> tuple[Summary, dict[str, Any]]:
        """Read ``summary.json``: the outcome and the facts.

        Raises
        ------
        DataError
            If there is none, because the run is not complete, or it cannot be read.
        """
        document = read_json(self.path / "summary.json")
        try:
            return Summary.from_dict(document, self.path), dict(document["facts"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path / 'summary.json'} is not a summary: {error}") from error

    @property
    def finished(self) -> bool:
        """Whether the run in it is complete."""
        return (self.path / "summary.json").exists()

    def save_model(self, state_dict: Mapping[str, Tensor]) -> None:
        """Write ``model.safetensors``; the old file stays until the new one is complete."""
        save_tensors(self.path / "model.safetensors", state_dict, {"format": "pt"})

    def load_model(self) -> dict[str, Tensor]:
        """Read ``model.safetensors`` onto the CPU.

        Raises
        ------
        DataError
            If the file is missing or damaged.
        """
        path = self.path / "model.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot read the model {path}: {error}") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a binary file such as ``journal.bin``; all of it or nothing."""
        if Path(name).name != name or name in ("", ".", ".."):
            raise ConfigError(f"{name!r} is not a file name; give one without a directory")
        atomic_write(self.path / name, lambda tmp: tmp.write_bytes(data))

    def read_bytes(self, name: str) -> bytes:
        """Read a binary file written by :meth:`write_bytes`."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.path / name}: {error.strerror}") from error

    def save_checkpoint(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write ``checkpoint.safetensors``: tensors and `meta` in one file, so they agree.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Any shapes and dtypes.
        meta : mapping
            JSON values: round, version, digest, counters.
        """
        save_tensors(self.path / "checkpoint.safetensors", tensors, {"meta": canonical_json(meta)})

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read ``checkpoint.safetensors`` onto the CPU.

        Raises
        ------
        DataError
            If the file is missing or damaged.
        """
        path = self.path / "checkpoint.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads(header["meta"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"cannot read the checkpoint {path}: {error}") from error

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.path / "checkpoint.safetensors").exists()

    def plot(self, metric: str = "accuracy") -> Path | None:
        """Draw ``accuracy.png`` from the history; None when no round has the metric yet."""
        history = self.history
        if not history.series(metric=metric)[0]:
            return None
        label = str(self.config.get("method", self.path.name))
        return accuracy_plot({label: history}, self.path / "accuracy.png", metric=metric)

    def close(self) -> None:
        """Flush and close the TensorBoard events; further records open a new file."""
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _occupied(self) -> bool:
        names = ("config.json", "history.jsonl", "model.safetensors", "checkpoint.safetensors")
        return any((self.path / name).exists() for name in names)

    def _mend_history(self) -> None:
        path = self.path / "history.jsonl"
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._rewrite_history(self.history)

    def _rewrite_history(self, history: History) -> None:
        text = "".join(record.to_json() + "\n" for record in history)
        data = text.encode("utf-8", errors="backslashreplace")
        atomic_write(self.path / "history.jsonl", lambda tmp: tmp.write_bytes(data))
