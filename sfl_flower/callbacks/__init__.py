"""Callbacks: what is told of a run as it goes, and may end it; see ``docs/callbacks.md``."""

from __future__ import annotations

from sfl_flower.callbacks.best_checkpoint import BestCheckpoint
from sfl_flower.callbacks.budget import Budget
from sfl_flower.callbacks.callback import Callback, Ended, Run, Written
from sfl_flower.callbacks.csv_logger import CSVLogger
from sfl_flower.callbacks.early_stopping import EarlyStopping
from sfl_flower.callbacks.mlflow import MLflow
from sfl_flower.callbacks.named import CALLBACKS, read_callbacks
from sfl_flower.callbacks.tensorboard import TensorBoard
from sfl_flower.callbacks.trackio import Trackio
from sfl_flower.callbacks.wandb import WandB

__all__ = [
    "CALLBACKS",
    "BestCheckpoint",
    "Budget",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "Ended",
    "MLflow",
    "Run",
    "TensorBoard",
    "Trackio",
    "WandB",
    "Written",
    "read_callbacks",
]
