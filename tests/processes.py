"""Programs that tests and benchmarks start: each in a group of its own, which ends as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import time

__all__ = ["end"]


def end(process: subprocess.Popen[str], grace_s: float = 10.0) -> None:
    """End a process and its group, which is its own: asked once, killed after a grace.

    Whoever is left of a group is ended, its leader there or not.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            process.poll()  # or it would be in the group as long as this process
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
