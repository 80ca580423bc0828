"""Plans of runs on a device, and the end of what was handed to it."""

from __future__ import annotations

from typing import Any

import torch

from sfl_flower.run.run import Plan
from sfl_flower.task import SplitTask

DEVICES = ("cpu", "cuda")

__all__ = ["plan_on", "waited"]


def plan_on(device: torch.device, task: SplitTask, method: str, **options: Any) -> Plan:
    """Return the plan of a run whose clients and server compute on a device.

    Nodes have data of their own: to divide a set asks for packages that a bare machine lacks.
    """
    both = dict.fromkeys(("client_device", "server_device"), DEVICES[device.type != "cpu"])
    given = {"partition": "local", "eval_every": 10**6, **both, **options}
    return Plan.read({**given, "method": method, "task": task.name})


def waited(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
