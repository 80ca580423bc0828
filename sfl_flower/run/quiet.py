"""Keeping Flower's log to what whoever calls `simulate` can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

_CRASH = (
    "An exception occur",  # twice, in two spellings
    "Traceback (most recent call last)",
    "Stopping Simulation Runtime",
    "The ActorPool is empty",
)
"""How the lines begin that Flower logs when Ray does not start."""


def _news(record: logging.LogRecord) -> bool:
    """Drop what is no news to whoever calls `simulate`.

    That is Flower's advice against `run_simulation`, which they cannot follow, and how it reports
    a crash: with two tracebacks, where `simulate` says the cause in a sentence.
    """
    text = record.getMessage()
    if "DEPRECATED" in text and "run_simulation" in text:
        return False
    return not text.startswith(_CRASH)


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keep Flower's log to warnings for the length of a block."""
    log = logging.getLogger("flwr")
    level = log.level
    if not verbose:
        log.setLevel(logging.WARNING)
        log.addFilter(_news)
    try:
        yield
    finally:
        log.removeFilter(_news)
        log.setLevel(level)
