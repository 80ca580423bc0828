"""The directory a run leaves behind: everything readable, nothing pickled, nothing half written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report.asked_file import ASKED, AskedFile
from sfl_flower.report.checkpoints import LAST, Checkpoints, load_own
from sfl_flower.report.config_file import (
    MAY_CHANGE,
    check_same,
    lasting_digest,
    read_config,
    read_measured,
    write_config,
)
from sfl_flower.report.events import EventWriter
from sfl_flower.report.files import (
    atomic_write,
    plain,
    read_sealed,
    remove_leftovers,
    write_json,
    write_sealed,
)
from sfl_flower.report.history import History, RoundRecord
from sfl_flower.report.history_file import HistoryFile
from sfl_flower.report.lock import Lock
from sfl_flower.report.plots import accuracy_plot
from sfl_flower.report.table import Summary
from sfl_flower.report.tensors import load_tensors, save_tensors

__all__ = ["RunDirectory"]

CONFIG, HISTORY, MODEL = "config.json", "history.jsonl", "model.safetensors"


class RunDirectory:
    """A directory with one run in it; see ``docs/run-directory.md`` for every file.

    Use :meth:`create` to start a run, :meth:`reopen` to resume one, the constructor to read one.

    Parameters
    ----------
    path : Path or str
        The directory; ``~`` is the user's home.
    tensorboard : bool
        Whether :meth:`append` also writes TensorBoard events.

    Attributes
    ----------
    asked : AskedFile
        What clients were asked for that costs privacy.
    """

    def __init__(self, path: Path | str, *, tensorboard: bool = True) -> None:
        self.path = Path(path).expanduser()
        self.checkpoints = Checkpoints(self.path)
        self._lock: Lock | None = None
        self._resolved: dict[str, Any] = {}
        self._measured: dict[str, int] = {}
        self._history, self.asked = HistoryFile(self.path / HISTORY), AskedFile(self.path / ASKED)
        self._events = EventWriter(self.path / "tensorboard") if tensorboard else None

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        tensorboard: bool = True,
        measured: Mapping[str, int] | None = None,
    ) -> RunDirectory:
        """Make the directory and write ``config.json``; it is locked until :meth:`close`.

        Parameters
        ----------
        path : Path or str
            Made when it does not exist.
        config : mapping
            The resolved configuration: plain values, dataclasses, paths, enums.
        tensorboard : bool
            Whether to write TensorBoard events.
        measured : mapping, optional
            What was measured before the run began.

        Raises
        ------
        ConfigError
            If a run is there, finished or going, or the path is not a usable directory.
        """
        run = cls(path, tensorboard=tensorboard)
        run._resolved, run._measured = plain(config, "config"), dict(measured or {})
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"Cannot make the run directory {run.path}: {error.strerror}; choose another"
            raise ConfigError(f"{problem} with out=.", shell=f"{problem} with --out.") from error
        with run._locked():
            if run.occupied:
                problem = f"{run.path} already holds a run; choose another directory with"
                raise ConfigError(
                    f"{problem} out=, or go on with that run with resume=True.",
                    shell=f"{problem} --out, or go on with that run with --resume.",
                )
            run.begin()
        return run

    @classmethod
    def reopen(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        tensorboard: bool = True,
        measured: Mapping[str, int] | None = None,
    ) -> RunDirectory:
        """Open the directory of a run that is to go on, and lock it until :meth:`close`.

        Nothing in it changes until :meth:`begin`.

        Parameters
        ----------
        path : Path or str
            Where the run is.
        config : mapping
            The resolved configuration; only the keys in `MAY_CHANGE` may be new.
        tensorboard : bool
            Whether to write TensorBoard events.
        measured : mapping, optional
            What was measured before the run began.

        Raises
        ------
        ConfigError
            If no run is there, or one that is going, or it has another configuration.
        DataError
            If ``config.json`` is damaged.
        """
        run = cls(path, tensorboard=tensorboard)
        run._resolved, run._measured = plain(config, "config"), dict(measured or {})
        if not run.occupied:
            problem = f"There is no run in {run.path} to go on with; "
            raise ConfigError(
                f"{problem}check out=, or leave out resume= to start one there.",
                shell=f"{problem}check --out, or leave out --resume to start one there.",
            )
        with run._locked():
            if (run.path / CONFIG).exists():  # else the checkpoint says whether it is the same
                run.check_same(run._resolved, MAY_CHANGE)
        return run

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock = Lock(self.path)
        try:
            yield
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Write ``config.json``; remove the summary and what was left half written."""
        remove_leftovers(self.path)
        (self.path / "summary.json").unlink(missing_ok=True)
        write_config(self.path / CONFIG, self._resolved, self._measured)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration in ``config.json``."""
        return read_config(self.path / CONFIG)

    @property
    def measured(self) -> dict[str, int]:
        """What was measured before the run began; empty where nothing was, or is not there."""
        path = self.path / CONFIG
        return read_measured(path) if path.exists() else {}

    @property
    def history(self) -> History:
        """The records in ``history.jsonl``; empty when there are none."""
        return self._history.load()

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
        check_same(self.path, self.config, config, may_change)

    def append(self, record: RoundRecord) -> None:
        """Add one line to ``history.jsonl``, flushed, and the TensorBoard scalars."""
        self._history.append(record)
        if self._events is not None:
            self._events.write(record)

    def keep_history(self, lines: int) -> History:
        """Keep the first lines of the history (a resume from that checkpoint) and return them."""
        self.close_events()  # so that the next events purge those of the dropped rounds
        return self._history.keep(lines)

    def write_ledger(self, ledger: Mapping[str, Any]) -> None:
        """Write ``ledger.json`` (bytes as whole numbers)."""
        write_json(self.path / "ledger.json", ledger)

    def write_summary(self, summary: Summary, facts: Mapping[str, Any]) -> None:
        """Write ``summary.json``, which says that the run is complete.

        Parameters
        ----------
        summary : Summary
            The outcome.
        facts : mapping
            What must be equal in runs that are compared and is not in the configuration.
        """
        write_sealed(self.path / "summary.json", {**summary.to_dict(), "facts": facts})

    def load_summary(self) -> tuple[Summary, dict[str, Any]]:
        """Read ``summary.json``: the outcome and the facts.

        Raises
        ------
        DataError
            If there is none, because the run is not complete, or it is damaged.
        """
        document = read_sealed(self.path / "summary.json")
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
        save_tensors(self.path / MODEL, state_dict, {"format": "pt"})

    def load_model(self) -> dict[str, Tensor]:
        """Read ``model.safetensors`` onto the CPU.

        Raises
        ------
        DataError
            If the file is missing or damaged.
        """
        return load_tensors(self.path / MODEL, "the model")[0]

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a binary file such as ``journal.bin``; all of it or nothing."""
        if Path(name).name != name or name in ("", ".", ".."):
            raise ConfigError(f"{name!r} is not a file name; give one without a directory")
        atomic_write(self.path / name, lambda tmp: tmp.write_bytes(data))

    def save_checkpoint(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write ``checkpoint.safetensors``; the one before it is kept, see `Checkpoints`.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Any shapes and dtypes.
        meta : mapping
            JSON values: round, version, digest, counters.
        """
        own = {
            "config": lasting_digest(self._resolved),
            "history": self._history.state(),
        }
        self.checkpoints.save(tensors, {**meta, "directory": own})

    def load_checkpoint(
        self, previous: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any], int]:
        """Read a checkpoint onto the CPU, and see that the other files are its own.

        Parameters
        ----------
        previous : bool
            Whether to read the one before the last.

        Returns
        -------
        tensors : dict of str to Tensor
            The tensors.
        meta : dict
            What `save_checkpoint` was given.
        lines : int
            Lines of the history up to the checkpoint; 0 where there is no history any more.

        Raises
        ------
        DataError
            If the file is missing or damaged, or the history is not the one it was made with.
        ConfigError
            If it belongs to another configuration than the one given.
        """
        config = lasting_digest(self._resolved) if self._resolved else ""
        return load_own(self.checkpoints, self._history, config, previous)

    def plot(self, metric: str = "accuracy") -> Path | None:
        """Draw ``accuracy.png`` from the history; None when no round has the metric yet."""
        history = self.history
        if not history.series(metric=metric)[0]:
            return None
        label = str(self.config.get("method", self.path.name))
        return accuracy_plot({label: history}, self.path / "accuracy.png", metric=metric)

    def close_events(self) -> None:
        """Flush and close the TensorBoard events; further records open a new file."""
        if self._events is not None:
            self._events.close()

    def close(self) -> None:
        """Close the events and let another run have the directory."""
        self.close_events()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def occupied(self) -> bool:
        """Whether a run is there, of which at least a part can be read."""
        names = (CONFIG, HISTORY, ASKED, MODEL, LAST, self.checkpoints.previous.name)
        return any((self.path / name).exists() for name in names)
