"""The rows: those of the CSV file that MY_APP_DATA names, or scikit-learn's breast cancer.

The first line of the file names its columns. All of them are numbers, and the last is the class,
from 0 on. Change CLASSES and COLUMNS to fit yours.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sfl_flower import Samples

CLASSES = ["malignant", "benign"]  # what 0, 1, ... in the last column mean
COLUMNS = 30  # without the last


def load(split):
    """Return the rows of "train" or "test", floats [N, COLUMNS], and their classes."""
    file = os.environ.get("MY_APP_DATA") or breast_cancer()
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2))
    if rows.shape[1] != COLUMNS + 1:
        raise ValueError(f"{file} has {rows.shape[1]} columns; COLUMNS in data.py is {COLUMNS}.")
    x, y = rows[:, :-1].float(), rows[:, -1].long()
    is_test = torch.arange(len(y)) % 5 == 0  # the same rows in every process
    spread, mean = torch.std_mean(x[~is_test], dim=0)
    x = (x - mean) / spread.clamp(min=1e-6)
    chosen = is_test if split == "test" else ~is_test
    return Samples(x[chosen], y[chosen])


def breast_cancer():
    """Return the file that is in scikit-learn; importing that would take seconds."""
    return Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "breast_cancer.csv"
