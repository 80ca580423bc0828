"""Errors a person reads: each says what is wrong, where, the legal range and what to do."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "CutError",
    "DataError",
    "JournalError",
    "SflError",
    "TrainingError",
    "WireError",
    "printable",
]


class SflError(Exception):
    """Base of every error that this package raises on purpose.

    Parameters
    ----------
    text : str
        What a person reads, in the words of Python.
    shell : str, optional
        The same in the words of the command line, where they differ.
    """

    def __init__(self, text: str, *, shell: str | None = None) -> None:
        super().__init__(text)
        self.shell = text if shell is None else shell


class ConfigError(SflError, ValueError):
    """A setting is unknown, of the wrong type, or out of its legal range."""


class CutError(SflError, ValueError):
    """A model cannot be cut where asked, or a half cannot be trained as asked."""


class DataError(SflError, ValueError):
    """A data set, a partition or a batch cannot be used."""


class WireError(SflError, ValueError):
    """A message does not match its declared form and is not trusted."""


class JournalError(SflError, ValueError):
    """A journal, an entry or a digest does not fit what came before it."""


class TrainingError(SflError, RuntimeError):
    """Training cannot go on; what was trained so far stays on disk."""


def printable(text: str, longest: int = 2000) -> str:
    """Return a text of somebody else's on one line, with nothing that steers a terminal.

    Parameters
    ----------
    text : str
        What a client or a file says.
    longest : int
        Characters that are kept of it.
    """
    kept = (" " if char in "\n\r\t" else char for char in text[:longest])
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in kept)
