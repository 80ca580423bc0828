"""The demo: HO-SFL on the digits, between its control and its ceiling, at equal samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sfl_flower.cli.places import at_home, free_place
from sfl_flower.report import RunProgress, Summary, accuracy_plot, print_tables
from sfl_flower.report.table import human_bytes
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import BACKENDS, run_plan
from sfl_flower.tasks import load_task

__all__ = ["DEMO_METHODS", "add_demo", "run_demo"]

SHARED: Mapping[str, Any] = {
    "task": "digits",
    "task.model": "conv",
    "rounds": 150,
    "clients": 10,
    "eval_every": 10,
}
"""What the three runs have in common, and so the samples they see."""

DEMO_METHODS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"server_lr": 0.05, "server_steps": "batch"},
    "ho_sfl": {
        "server_lr": 0.05,
        "server_steps": "batch",
        "client_lr": 0.05,
        "probes": 8,
        "clip_norm": 0,
    },
    "splitfed_v2": {"server_lr": 0.05, "client_lr": 0.1},
}
"""The methods and the settings that are their own: every server half steps after each batch."""


def add_demo(commands: Any) -> None:
    """Add the command to the parser of `sfl`."""
    demo = commands.add_parser(
        "demo",
        help=f"train {', '.join(DEMO_METHODS)} on the digits and compare them",
        epilog="Example: sfl demo --out runs/demo",
    )
    demo.add_argument("--out", type=at_home, default=Path("runs/demo"), help="where results go")
    demo.add_argument("--backend", choices=BACKENDS, default="inline", help="this process, or Ray")
    demo.set_defaults(action=lambda parsed: run_demo(parsed.out, parsed.backend))


def run_demo(out: Path, backend: str = "inline") -> None:
    """Train the three methods, print a table, draw a plot and keep the models.

    Parameters
    ----------
    out : Path
        Directory for the three run directories and the plot; existing results get a new number.
    backend : {"inline", "ray"}
        One process, or Flower's simulation; the results are equal.
    """
    out = free_place(out)
    console = Console()
    console.print(
        f"Digits (1797 real images) and a small convolutional net over {SHARED['clients']} non-IID "
        f"clients, {SHARED['rounds']} rounds of each method, results in {out}",
        highlight=False,
    )
    results = {}
    with RunProgress(console) as progress:
        for method, settings in DEMO_METHODS.items():
            plan = Plan.read({**SHARED, **settings, "method": method}, out / method)
            progress.start(method, plan.config.rounds)
            task = load_task(plan.config.task, **plan.task_options)
            results[method] = run_plan(task, plan, backend=backend, observer=progress.update)
    print_tables([result.summary for result in results.values()], console=console)
    plot = accuracy_plot(
        {method: result.history for method, result in results.items()},
        out / "accuracy.png",
        controls=["frozen"],
    )
    for sentence in _story({method: result.summary for method, result in results.items()}):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Plot: {plot}", highlight=False, soft_wrap=True)
    console.print(
        f"Trained model: {out / 'ho_sfl' / 'model.safetensors'}", highlight=False, soft_wrap=True
    )


def _story(summaries: Mapping[str, Summary]) -> list[str]:
    """Say in sentences what forward-only clients saved, what they learned, and what it took."""
    control, own, first = (summaries[name] for name in DEMO_METHODS)
    accuracy = [summary.metrics["accuracy"] for summary in (control, own, first)]
    scores = (
        f"Accuracy: clients never trained {accuracy[0]:.1%}, forward-only {accuracy[1]:.1%}, "
        f"backprop {accuracy[2]:.1%}."
    )
    said = [scores]
    if own.client_peak_bytes and first.client_peak_bytes:
        mine, theirs = own.client_peak_bytes, first.client_peak_bytes
        pair = f"({human_bytes(mine)}, {human_bytes(theirs)})"
        said.append(
            f"Memory: a forward-only client peaks at {mine / theirs:.0%} of what backprop takes "
            f"{pair}."
            if mine < theirs
            else f"Memory: forwards alone save nothing here {pair}."
        )
    moved, whole = (sum(map(s.total, ("up", "down"))) for s in (own, first))
    said.append(
        f"Traffic: {moved / whole:.0%} of its bytes ({human_bytes(moved)}, {human_bytes(whole)}), "
        "since scalars travel instead of weights."
    )
    if own.client_flops and first.client_flops:
        said.append(
            f"The price: {own.client_flops / first.client_flops:.1f} times its operations on a "
            "client."
        )
    return said
