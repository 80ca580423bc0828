"""What a figure was measured on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import torch

from benchmarks.figure import Figure

__all__ = ["run"]

PACKAGES = ("torch", "flwr", "numpy", "ray")
GIB = 2**30


def run(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield the memory of the device; the setting says machine and versions."""
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        name, memory = f"{about.name}, CUDA {torch.version.cuda}", about.total_memory / GIB
    else:
        name, memory = f"{platform.processor() or platform.machine()}, no GPU used", 0.0
    found = f"Python {platform.python_version()}, {', '.join(map(_version, PACKAGES))}"
    yield Figure("gpu_memory", memory, "GiB", None, f"{name}; {found}")


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"
