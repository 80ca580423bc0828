"""Callbacks: what is told of a run as it goes, and may end it."""

from __future__ import annotations

from sfl_flower.callbacks.callback import Callback, Ended, Run, Written
from sfl_flower.callbacks.early_stopping import EarlyStopping

__all__ = ["Callback", "EarlyStopping", "Ended", "Run", "Written"]
