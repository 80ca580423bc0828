"""Comparisons whose numbers are given, so that a page can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfl_flower.comparison.compare import compare_runs
from tests.report.runs import finished

FORWARD: dict[str, Any] = {
    "client_lr": 0.1,
    "terms": {"client": "zeroth order", "client_backprops": 0, "micro_batch": 0},
}


def make_comparison(folder: Path) -> None:
    """Write the folder of a comparison: control, method, walk, first order, and it once more.

    Accuracies over two seeds: frozen 0.4 and 0.6, ho_sfl 0.6 and 0.8, its walk 0.5 and 0.6,
    splitfed_v2 0.8 and 1.0, in micro-batches of 4 the same less 0.1.
    """
    runs = []
    for seed in (0, 1):
        more = 0.2 * seed
        at = folder / "runs" / f"seed{seed}"
        runs += [
            finished(at / "frozen", "frozen", 0.4 + more, seed=seed, server_steps="batch"),
            finished(at / "ho", "ho_sfl", 0.6 + more, seed=seed, walk=False, **FORWARD),
            finished(at / "walk", "ho_sfl", 0.5 + more / 2, seed=seed, walk=True, **FORWARD),
            finished(at / "first", "splitfed_v2", 0.8 + more, seed=seed),
            finished(
                at / "lean", "splitfed_v2", 0.7 + more, seed=seed, micro_batch="4",
                terms={"micro_batch": 4},
            ),
        ]  # fmt: skip
    compare_runs([run.path for run in runs], folder)
