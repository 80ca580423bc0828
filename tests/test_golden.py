"""Recorded runs come out to the same bits: journals, digests, losses and models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
ROOT = GOLDEN.parents[1]
RECORDED_WITH = "2.15"
"""The torch whose sums the recording holds; another release may order them otherwise."""


def test_recorded_runs_come_out_to_the_same_bits() -> None:
    if not torch.__version__.startswith(RECORDED_WITH):
        pytest.skip(f"recorded with torch {RECORDED_WITH}, this is {torch.__version__}")
    # A process of its own: the kernels are chosen when torch is imported.
    found = subprocess.run(
        [sys.executable, GOLDEN / "runs.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    recorded = json.loads((GOLDEN / "runs.json").read_text(encoding="utf-8"))
    assert json.loads(found.stdout) == recorded
