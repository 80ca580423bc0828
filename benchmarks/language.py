"""SST-2 with a pre-trained encoder: HO-SFL beside SplitLoRA, the control and the other methods.

MiniLM with LoRA adapters, cut behind its second block. SplitLoRA is SplitFed V2 of a model with
adapters. The runs are an `sfl_flower.compare`, whose table and plots stay in the output directory.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.figure import Figure
from sfl_flower import compare
from sfl_flower.comparison.rows import CEILING, CONTROL, Row
from sfl_flower.options import check_choice

__all__ = ["add_arguments", "run"]

SHARED: Mapping[str, Any] = {
    "task.model": "minilm",
    "task.train_size": 8_000,
    "task.cut": "block:2",
    "task.lora_rank": 8,
    "task.lora_targets": "query,key,value,dense",
    "clients": 10,
    "sampled": 3,
    "partition": "iid",
    "batch_size": 8,
    "eval_every": 120,
    "server_optimizer": "adamw",
    "server_lr": 7e-4,
    "server_lr_schedule": "cosine",
    "server_lr_warmup": 0.05,
}
FALLING: Mapping[str, Any] = {"client_optimizer": "adamw", "client_lr_schedule": "cosine"}
FIRST_ORDER_CLIENT: Mapping[str, Any] = {
    **FALLING,
    "client_lr": 7e-4,
    "client_momentum": 0.9,
    "client_state": "kept",
}
ZEROTH_ORDER_CLIENT: Mapping[str, Any] = {**FALLING, "client_lr": 1e-4, "probes": 4}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {},
    "splitfed_v2": FIRST_ORDER_CLIENT,
    # One server step a round, with the mean of three batches, where the others take three.
    "ho_sfl": {
        **ZEROTH_ORDER_CLIENT,
        "client_lr": 1e-3,
        "server_lr": 1e-3,
        "server_steps": "round",
    },
    "heron": {**ZEROTH_ORDER_CLIENT, "head": "pooled", "head_lr": 1e-3},
    "fsl_sage": {
        **FIRST_ORDER_CLIENT,
        "head": "pooled",
        "head_lr": 3e-3,
        "buffer": 64,
        "align_every": 10,
        "align_epochs": 20,
    },
}
"""Method -> the settings that are its own."""
TARGET, POINT = 0.85, -0.01


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--language-samples", type=int, default=11_520, help="samples of each run")
    parser.add_argument("--language-seeds", type=int, default=3, help="seeds 0, 1, … of each run")
    parser.add_argument(
        "--language-methods",
        default=",".join(METHODS),
        help=f"with commas between them, of: {', '.join(METHODS)}; {CONTROL} and {CEILING} always",
    )
    parser.add_argument("--language-workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--language-out",
        type=Path,
        help="directory of the runs: those in it are not run again, table and plots go there",
    )


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the accuracy of each method, and HO-SFL's beside first order."""
    chosen = args.language_methods.split(",")
    for name in chosen:
        check_choice("--language-methods", name, METHODS)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with TemporaryDirectory() as scratch:
        table = compare(
            "sst2",
            {name: METHODS[name] for name in dict.fromkeys([CEILING, *chosen])},
            samples=args.language_samples,
            seeds=args.language_seeds,
            out=args.language_out or scratch,
            workers=args.language_workers,
            **SHARED,
        )
    for row in table.rows:
        if row.method == CEILING:
            yield Figure("sst2_first_order", row.mean, "share", TARGET, _setting(row))
        elif row.method == CONTROL:
            name = f"sst2_{CONTROL}_{row.term('server_pace')}"
            yield Figure(name, row.mean, "share", None, _setting(row))
        else:
            yield Figure(f"sst2_{row.method}", row.mean, "share", None, _setting(row))
    found = {row.method: row for row in table.rows}
    control = max(row.mean for row in table.rows if row.method == CONTROL)
    if "ho_sfl" in found:
        yield Figure(
            "sst2_ho_sfl_minus_first_order",
            found["ho_sfl"].mean - found[CEILING].mean,
            "share",
            POINT,
            f"{found['ho_sfl'].mean:.4f} - {found[CEILING].mean:.4f}; the frozen client, which "
            f"trains nothing below the cut, has {control:.4f}",
        )


def _setting(row: Row) -> str:
    own = ", ".join(f"{key}={value}" for key, value in METHODS[row.method].items())
    spread = "" if row.spread is None else f", standard deviation {row.spread:.4f}"
    margin = (
        ""
        if row.margin is None
        else f", {row.margin:+.4f} over the higher of the frozen client and its walk"
    )
    return (
        f"SST-2, MiniLM, {row.summary.samples:,} samples, {row.method} ({own}), server rate "
        f"{row.server_lr:g}, {len(row.runs)} seeds{spread}{margin}"
    )
