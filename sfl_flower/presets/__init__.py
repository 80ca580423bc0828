"""Published experiments as options: what the paper says, and what had to be chosen beside it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sfl_flower.options import unknown

__all__ = ["PRESETS", "Preset", "load_preset"]

_FOLDER = files(__name__)

PRESETS: tuple[str, ...] = tuple(
    sorted(f.name.removesuffix(".toml") for f in _FOLDER.iterdir() if f.name.endswith(".toml"))
)
"""Names of the presets, those of the files beside this module."""


@dataclass(frozen=True)
class Preset:
    """One published experiment.

    Attributes
    ----------
    name, title : str
        What to call it, and what it is in one line.
    source : str
        Where it is published.
    paper : dict
        Options whose values the paper, or the code of its authors, gives.
    ours : dict
        Options that it leaves open; the file says beside each why it has its value.
    """

    name: str
    title: str
    source: str
    paper: dict[str, Any]
    ours: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """All options, as `simulate` and the command line take them."""
        return {**self.paper, **self.ours}


def load_preset(name: str) -> Preset:
    """Read a preset.

    Raises
    ------
    ConfigError
        There is no preset of this name; the message lists them.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    read = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return Preset(name, read["title"], read["source"], read["paper"], read["ours"])
