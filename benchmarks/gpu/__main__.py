"""The GPU check: ``python -m benchmarks.gpu [--device cuda|cpu] [--small] [--out DIR]``.

Its exit status is 0 where everything that has to be equal is, and every section ended; see
`benchmarks.gpu.check.Check.status`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.check import BEGIN, END, FIGURE, NO_DEVICE, SECONDS, SECTIONS, Check
from sfl_flower.errors import ConfigError

__all__ = ["main"]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for results")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="of these, with commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # what a process of the check runs
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, or one section of it in this process."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.section:
        return _sections(args)
    check = Check(args.device, args.small, args.out, args.seconds)
    try:
        for _ in check.run(args.sections.split(",")):
            pass
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 4
    return check.status()


def _sections(args: argparse.Namespace) -> int:
    """Run sections one after another; the first that fails is the last."""
    import torch

    from sfl_flower.training.device import find_device

    try:
        device = find_device(args.device, "--device")
    except ConfigError as error:
        print(error)
        return NO_DEVICE
    if device.type == "cpu":  # as clients and server have it, so that bare loops are alike
        torch.set_num_threads(1)
    for name in args.section.split(","):
        print(BEGIN, name, flush=True)
        module, _, function = SECTIONS[name].source.partition(":")
        for figure in getattr(importlib.import_module(module), function)(device, args.small):
            print(FIGURE, figure.to_json(), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(END, name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
