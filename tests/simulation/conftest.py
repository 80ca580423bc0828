"""What tests of Flower's own commands stand on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.federation import free_ports, wait_for


@pytest.fixture
def managed_superlink(flwr_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """End the SuperLink that `flwr run` starts and leaves behind; on ports of the test's own."""
    api, control = free_ports(2)
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(api))
    monkeypatch.setenv("FLWR_LOCAL_CONTROL_API_PORT", str(control))
    yield flwr_home
    for pid in _processes(str(flwr_home)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_for("the SuperLink to end", lambda: not _processes(str(flwr_home)), patience=60)


def _processes(text: str) -> list[int]:
    """Return the processes whose command line names this directory of the test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
    return found
