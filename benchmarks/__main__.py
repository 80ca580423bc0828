"""Print the project's figures: ``python -m benchmarks NAME [NAME ...] [--json] [options]``.

A benchmark is a module of this package with ``run(args) -> Iterator[Figure]``, which yields each
figure as soon as it is measured, and, where it has options, ``add_arguments(parser)``. Its options
begin with its name (``--learning-rounds``), since several benchmarks may run in one call.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.figure import Figure
from benchmarks.recorded import record

# name -> what it measures; the module has the benchmark's name.
BENCHMARKS = {
    "recorded": "figures of the long ones as they were measured, with their commands",
    "house": "rooms, floors and imports of the package; faults without a test",
    "probe": "perturbing parameters, beside an add, normal_ and MeZO's way",
    "prefix": "probes that rerun what they move alone, beside whole forwards and backprop",
    "replay": "rebuilding parameters from the journal, beside downloading them",
    "server": "the server half: mini-batches together, bfloat16 and compiled, over the default",
    "round": "a HO-SFL round beside its forwards and server step; samples per second",
    "cohort": "1 000 of 10 000 clients beside 10 of 100, memory over rounds, waves (minutes)",
    "deployed": "where the seconds of a deployed exchange go, warm client processes (minutes)",
    "speed": "rounds of SplitFed V2, CSE-FSL and FSL-SAGE beside bare loops (minutes)",
    "official": "rounds beside the published code of others, from checkouts of it (minutes)",
    "ledger": "published traffic, from dry runs of the presets (minutes)",
    "forwards": "client forwards and backwards a step beside the closed forms",
    "memory": "a client's peak: HERON-SFL beside CSE-FSL, first order at equal memory (minutes)",
    "cost": "a client's peak beside a plain forward's, and the time of a probe by layers",
    "gpu": "equality with the CPU, waits, peaks and speed on a GPU; scripts/gpu_check.sh (minutes)",
    "cut_bytes": "bytes across the cut in encodings, and what they cost in accuracy (long)",
    "pipeline": "what HO-SFL learns pipelined, beside its plain form and the frozen client (long)",
    "bytes_to_accuracy": "bytes to SplitFed V2's accuracy less a point, Fashion-MNIST (long)",
    "profile": "seconds of a profile of every cut, predicted peaks beside measured ones (minutes)",
    "cuts": "halves that give the bits of the whole, at every legal cut of every architecture",
    "language": "HO-SFL beside SplitLoRA on SST-2 with a pre-trained encoder (long)",
    "defaults": "which settings HO-SFL should have, by validation on three small tasks (long)",
    "energy": "the share of the gradient that a choice of few parameters holds (minutes)",
    "eva": "directions of peft's EVA beside those of subspaces of the same layers (minutes)",
    "guides": "how close guides of the server lie to the clients' gradient, what they teach (long)",
    "guide_limits": "how near guides come to a round's clients and over rounds to all (minutes)",
    "learn": "clients with at most five forwards a sample between controls and first order (long)",
    "sensitivity": "accuracy by probes, μ, clients, who takes part, uneven data, lost replies",
    "learning": "HO-SFL between the frozen client and first order on Fashion-MNIST (long)",
    "trust": "kills, faults, garbage and a thousand rounds: what runs survive (minutes to long)",
}


class Benchmark(Protocol):
    """What a module of this package offers; ``add_arguments(parser)`` besides is optional."""

    def run(self, args: argparse.Namespace) -> Iterator[Figure]:
        """Measure, and yield each figure as soon as it is there."""
        ...


@dataclass(frozen=True)
class Selection:
    """What a command line asks for."""

    benchmarks: dict[str, Benchmark]
    args: argparse.Namespace
    argv: Sequence[str]


def load(name: str) -> Benchmark:
    """Import the benchmark of that name; only a chosen one is imported."""
    return cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))


def parse(argv: Sequence[str]) -> Selection:
    """Read the command line; exits with code 2 and the list of names where it is not understood."""
    listed = "\n".join(f"  {name:<12} {about}" for name, about in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure, and hold the figures against their targets.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a benchmark, see below")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as measured")
    parser.add_argument(
        "--record", action="store_true", help="put the figures into docs/results/figures.jsonl"
    )
    # The options of the chosen ones must be known before the line can be read as a whole.
    chosen = {name: load(name) for name in BENCHMARKS if name in argv}
    for name, benchmark in chosen.items():
        if hasattr(benchmark, "add_arguments"):
            benchmark.add_arguments(parser.add_argument_group(name))
    args = parser.parse_intermixed_args(argv)
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is named {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if args.record and "recorded" in args.names:
        parser.error("--record puts measured figures into the file that 'recorded' prints")
    ordered = {name: chosen[name] for name in args.names}
    return Selection(ordered, args, argv)


def measure(selection: Selection) -> Iterator[tuple[str, Figure]]:
    """Run the chosen benchmarks in their order; yield (benchmark, figure) as they come."""
    for name, benchmark in selection.benchmarks.items():
        for figure in benchmark.run(selection.args):
            if selection.args.record:
                record(figure, selection.argv)
            yield name, figure


def table_of(figures: Sequence[tuple[str, Figure]]) -> Table:
    """Lay figures out for a person; a missed target is marked."""
    table = Table(title="Figures")
    for heading in ("benchmark", "figure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("setting", overflow="fold")
    verdicts = {None: "", True: "[green]reached[/green]", False: "[red]missed[/red]"}
    for name, figure in figures:
        table.add_row(
            name,
            figure.name,
            f"{figure.value:.4g}",
            figure.bound,
            figure.unit,
            verdicts[figure.met],
            escape(figure.setting),
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a missed target is shown, and is no failure of the program."""
    argv = sys.argv[1:] if argv is None else argv
    selection = parse(argv)
    if selection.args.json:
        for _, figure in measure(selection):
            print(figure.to_json(), flush=True)
        return 0
    progress = Console(stderr=True)
    figures = []
    for name, figure in measure(selection):
        figures.append((name, figure))
        progress.print(f"{name}: {figure.name} = {figure.value:.4g} {figure.unit}", highlight=False)
    # Piped into a file there is no width to fit: wide enough that nothing is cut.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table_of(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
