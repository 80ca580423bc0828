"""The demo: HO-SFL on the digits, between its control and its ceiling, at equal samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sfl_flower.cli.places import free_place
from sfl_flower.report import RunProgress, accuracy_plot, print_tables
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import BACKENDS, run_plan
from sfl_flower.tasks import load_task

__all__ = ["DEMO_METHODS", "add_demo", "run_demo"]

SHARED: Mapping[str, Any] = {"task": "digits", "rounds": 150, "clients": 10, "eval_every": 10}
"""What the three runs have in common, and so the samples they see."""

DEMO_METHODS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"server_lr": 0.2},
    "ho_sfl": {"server_lr": 0.2, "client_lr": 0.1, "probes": 8},
    "splitfed_v2": {"server_lr": 0.05, "client_lr": 0.1},
}
"""The methods and the settings that are their own."""


def add_demo(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    demo = commands.add_parser(
        "demo", help=f"train {', '.join(DEMO_METHODS)} on the digits and compare them"
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="where results go")
    demo.add_argument("--backend", choices=BACKENDS, default="ray", help="Ray, or this process")
    demo.set_defaults(action=lambda parsed: run_demo(parsed.out, parsed.backend))


def run_demo(out: Path, backend: str = "ray") -> None:
    """Train the three methods, print a table, draw a plot and keep the models.

    Parameters
    ----------
    out : Path
        Directory for the three run directories and the plot; existing results get a new number.
    backend : {"ray", "inline"}
        Flower's simulation, or one process.
    """
    out = free_place(out)
    console = Console()
    console.print(
        f"Digits (1797 real images) over {SHARED['clients']} non-IID clients, "
        f"{SHARED['rounds']} rounds of each method, results in {out}",
        highlight=False,
    )
    results = {}
    with RunProgress(console) as progress:
        for method, settings in DEMO_METHODS.items():
            plan = Plan.read({**SHARED, **settings, "method": method}, out / method)
            progress.start(method, plan.config.rounds)
            task = load_task(plan.config.task)
            results[method] = run_plan(task, plan, backend=backend, observer=progress.update)
    print_tables([result.summary for result in results.values()], console=console)
    plot = accuracy_plot(
        {method: result.history for method, result in results.items()}, out / "accuracy.png"
    )
    console.print(f"Plot: {plot}", highlight=False, soft_wrap=True)
    console.print(
        f"Trained model: {out / 'ho_sfl' / 'model.safetensors'}", highlight=False, soft_wrap=True
    )
