"""``config.json``: what was run, with which versions, and a digest that notices a change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report.files import config_digest, read_json, versions, write_json

__all__ = [
    "MAY_CHANGE",
    "check_same",
    "lasting_digest",
    "read_config",
    "read_measured",
    "write_config",
]

MAY_CHANGE = frozenset({"rounds", "out", "resume", "wave"})
"""Keys of the configuration that a resume may set differently."""
_SEAL = "sha256"


def write_config(path: Path, config: Mapping[str, Any], measured: Mapping[str, int]) -> None:
    """Write a configuration of plain values, and what was measured before the run began."""
    write_json(
        path,
        {
            "config": config,
            "seed": config.get("seed"),
            _SEAL: config_digest(config),
            **({"measured": {**measured, _SEAL: config_digest(measured)}} if measured else {}),
            "versions": versions(),
        },
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    try:
        document = read_json(path)
        found = dict(document["config"])
        if document[_SEAL] != config_digest(found):
            raise DataError(f"{path} is damaged: its 'config' does not fit its '{_SEAL}'")
    except (DataError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, DataError) else f"{path} has no object 'config'"
        raise DataError(
            f"{what}; put the file back as it was, or delete it and resume with the options of the "
            "run, which are then checked against its checkpoint."
        ) from error
    return found


def read_measured(path: Path) -> dict[str, int]:
    """Read what was measured before a run began, empty where nothing was.

    Raises
    ------
    DataError
        If the file is damaged; a number without a digest, of an older release, is believed.
    """
    try:
        found = dict(read_json(path).get("measured", {}))
        seal = found.pop(_SEAL, None)
        if any(type(n) is not int or n < 0 for n in found.values()):
            raise ValueError("a number is none")
        if seal not in (None, config_digest(found)):
            raise ValueError("it does not fit its digest")
    except (AttributeError, TypeError, ValueError):
        raise DataError(
            f"{path} is damaged: 'measured' is not what was written; put the file back as it was, "
            "or delete it and resume with the options of the run, which are then checked against "
            "its checkpoint."
        ) from None
    return found


def lasting_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of what a resume must not change."""
    return config_digest({key: value for key, value in config.items() if key not in MAY_CHANGE})


def check_same(
    directory: Path, old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str]
) -> None:
    """Refuse a configuration that is not the directory's own.

    Parameters
    ----------
    directory : Path
        The run directory.
    old, new : mapping
        Plain values: its configuration, and what is asked for.
    may_change : collection of str
        Top-level keys that may differ.

    Raises
    ------
    ConfigError
        If another key differs; the message lists what was and what is asked for.
    """
    changed = sorted(
        key
        for key in old.keys() | new.keys()
        if key not in may_change and old.get(key) != new.get(key)
    )
    if changed:
        what = ", ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in changed)
        problem = (
            f"Cannot resume {directory} with another configuration ({what}); use the old values, "
            "or start anew in another directory with"
        )
        raise ConfigError(f"{problem} out=.", shell=f"{problem} --out.")
