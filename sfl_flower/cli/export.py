"""The `sfl export` command."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from sfl_flower.cli.given import given_task
from sfl_flower.cli.places import at_home
from sfl_flower.reporting.exporting import export_model

__all__ = ["add_export"]


def add_export(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        help="hand on a run's trained model: weights, a model card, ONNX",
        description=(
            "Write the trained model of a run, client half and server half together, as "
            "safetensors in its own names, with a model card. A transformers model is also written "
            "as a folder that from_pretrained reads, LoRA adapters merged."
        ),
        epilog="Example: sfl export runs/ho_sfl --out model --comparison runs/compare",
    )
    parser.add_argument("run", metavar="DIR", type=at_home, help="the run directory")
    parser.add_argument("--out", type=at_home, required=True, metavar="FOLDER", help="where to")
    parser.add_argument(
        "--comparison", type=at_home, metavar="DIR",
        help="a comparison that has the run; the card then names its control",
    )  # fmt: skip
    parser.add_argument(
        "--task", metavar="MODULE:ATTRIBUTE",
        help="the run's SplitTask where it is your own: for --onnx, and for transformers models",
    )  # fmt: skip
    parser.add_argument(
        "--onnx", action="store_true",
        help="also write the client half as client.onnx, run in onnxruntime beside torch",
    )  # fmt: skip
    parser.set_defaults(action=_export)


def _export(parsed: argparse.Namespace) -> None:
    folder = export_model(
        parsed.run,
        parsed.out,
        task=None if parsed.task is None else given_task(parsed.task, {}),
        comparison=parsed.comparison,
        onnx=parsed.onnx,
    )
    text = f"The model is in {folder.absolute()}; README.md there says how to load it"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
