"""What tests of deployments look at in a run, and how they end a program as a power cut would."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sfl_flower import RunResult
from sfl_flower.report import History, RunDirectory


def rounds(out: Path) -> int:
    """Return the last round of a run that goes on, -1 before there is one."""
    path = out / "history.jsonl"
    return len(path.read_text().splitlines()) - 1 if path.exists() else -1


def assert_same_run(found: RunDirectory, expected: RunResult) -> None:
    """Compare losses, metrics, versions and digests of every round, and the model, to the bit."""

    def numbers(history: History) -> list[Any]:
        return [replace(r, seconds=0.0, exchanges=0, bytes_up=0, bytes_down=0) for r in history]

    assert numbers(found.history) == numbers(expected.history)
    model = found.load_model()
    assert model.keys() == expected.model.keys()
    assert all(torch.equal(model[name], expected.model[name]) for name in model)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a program and all that it started, whatever session that is in."""
    for pid in [process.pid, *_descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=60)


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name before it, in parentheses, may hold spaces.
            parents[int(place.name)] = int(
                (place / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]
