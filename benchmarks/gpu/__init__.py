"""What has to be seen on a GPU, in one go: equality with the CPU, waits, peaks and speed.

Each section has a limit of its own and runs in another process, so one that crashes or hangs leaves
the others; its figures are kept as they come.  ``scripts/gpu_check.sh`` brings the packages
and calls ``python -m benchmarks.gpu``; on the CPU the same code runs at small sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.gpu.check import SECTIONS, Check

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--gpu-device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--gpu-small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--gpu-out", default="gpu_check", help="folder (default gpu_check)")
    parser.add_argument(
        "--gpu-sections", default=",".join(SECTIONS), help="of these, with commas (default all)"
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the figures of the sections as they are measured."""
    say = partial(print, file=sys.stderr, flush=True)
    check = Check(args.gpu_device, args.gpu_small, Path(args.gpu_out), say=say)
    yield from check.run(args.gpu_sections.split(","))
