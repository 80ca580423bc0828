"""Damaged messages, journals, checkpoints and configurations through every decoder.

What is damaged are messages and files of short runs of every method (`benchmarks.fuzzing.corpus`);
how follows from the bytes of an input, which come from a seeded generator, from hypothesis and,
where it is installed, from atheris, which looks for inputs that reach new lines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.figure import Figure
from benchmarks.fuzzing.corpus import RUNS, corpus
from benchmarks.fuzzing.guided import FOUND
from benchmarks.fuzzing.targets import Target, targets
from benchmarks.fuzzing.watch import SLOW, Watch
from sfl_flower.data.seeding import generator
from sfl_flower.wire.padding import MAX_BYTES

__all__ = ["add_arguments", "figures", "fuzz", "kind_of"]

INPUTS = 200_000
LENGTH = 64
"""Bytes of an input of the generator."""
KINDS: Mapping[str, int] = {
    "messages": 100, "journals": 66, "checkpoints": 26, "resumes": 2, "configurations": 62,
}  # fmt: skip
"""How many of 256 inputs go to a kind of decoder."""
GUIDED, PROPERTIES = 0.3, 0.1
"""Shares of the inputs that are atheris's and hypothesis's."""


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this part."""
    parser.add_argument(
        "--trust-fuzz-inputs", type=int, default=INPUTS, help=f"inputs in all (default {INPUTS})"
    )
    parser.add_argument("--trust-fuzz-seed", type=int, default=0, help="of the inputs")
    parser.add_argument(
        "--trust-fuzz-python", default=sys.executable, help="an interpreter that has atheris"
    )


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield crashes, hangs, refusals without a reason and the most memory, over all inputs."""
    torch.set_num_threads(1)
    total, start = args.trust_fuzz_inputs, args.trust_fuzz_seed
    guided = _guided(args.trust_fuzz_python, int(GUIDED * total), start)
    watch, said = Watch(), "atheris is not there: pip install 'sfl-flower[fuzz]'"
    if guided is not None:
        watch.add(guided)
        said = f"{sum(guided.inputs.values())} by atheris"
    with tempfile.TemporaryDirectory(prefix="sfl_flower-trust-") as directory:
        root = Path(directory)
        (root / "scratch").mkdir()
        decoders = targets(corpus(root), root / "scratch")
        properties = int(PROPERTIES * total)
        _by_hypothesis(watch, decoders, properties, start)
        fuzz(watch, decoders, total - sum(watch.inputs.values()), start)
    count = sum(watch.inputs.values())
    by_kind = ", ".join(
        f"{n} {kind} ({watch.read[kind]} read, {watch.refused[kind]} refused)"
        for kind, n in watch.inputs.items()
    )
    setting = f"{len(RUNS)} runs damaged, {properties} inputs by hypothesis, {said}: {by_kind}"
    yield Figure("fuzz_inputs", count, "inputs", float(INPUTS), setting)
    for name, found, what in (
        ("crashes", watch.crashes, "raised what is no refusal"),
        ("hangs", watch.hangs, f"took more than {SLOW:g} s of the processor"),
        ("refusals_without_reason", watch.silent, "were refused without a sentence"),
    ):
        key = {"refusals_without_reason": "silent"}.get(name, name)
        told = f"{what}{': ' if found else ''}{' | '.join(found[:5])}"
        yield Figure(
            f"fuzz_{name}",
            watch.found[key],
            "inputs",
            0.0,
            f"of {count} inputs, {told}",
            lower_is_better=True,
        )
    yield Figure(
        "fuzz_largest_allocation",
        watch.largest / 2**20,
        "MiB",
        MAX_BYTES / 2**20,
        f"of {count} inputs, the most that Python and numpy held for one {' | '.join(watch.large)}",
        lower_is_better=True,
    )


def kind_of(data: bytes) -> str:
    """Return which decoder an input is for, by its first two bytes."""
    at = int.from_bytes(data[:2], "little") % sum(KINDS.values())
    for kind, count in KINDS.items():
        if at < count:
            return kind
        at -= count
    raise AssertionError("a remainder is below the sum")


def fuzz(watch: Watch, decoders: Mapping[str, Target], inputs: int, start: int) -> None:
    """Give inputs of a seeded generator to decoders.

    Parameters
    ----------
    watch : Watch
        Takes what comes of them.
    decoders : mapping of str to callable
        By the kinds of `KINDS`.
    inputs, start : int
        How many, and the seed.
    """
    draw = generator("trust fuzz", start)
    with watch.watching():
        for _ in range(inputs):
            _one(watch, decoders, draw.bytes(LENGTH))


def _one(watch: Watch, decoders: Mapping[str, Target], data: bytes) -> None:
    kind = kind_of(data)
    watch.run(kind, decoders[kind], data[2:])


def _by_hypothesis(watch: Watch, decoders: Mapping[str, Target], inputs: int, start: int) -> None:
    @seed(start)
    @settings(
        max_examples=max(1, inputs), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(min_size=2, max_size=LENGTH))
    def each(data: bytes) -> None:
        _one(watch, decoders, data)

    with watch.watching():
        each()


def _guided(python: str, inputs: int, start: int) -> Watch | None:
    """Return what came of atheris's inputs, None where it is not installed.

    Raises
    ------
    RuntimeError
        If its process ends before them: what it said stands in the error.
    """
    here = [python, "-c", "import atheris"]
    if not inputs or subprocess.run(here, capture_output=True, check=False).returncode:
        return None
    with tempfile.TemporaryDirectory(prefix="sfl_flower-trust-") as directory:
        out = Path(directory) / FOUND
        words = ["--inputs", str(inputs), "--seed", str(start), "--root", directory]
        ended = subprocess.run(
            [python, "-m", "benchmarks.fuzzing.guided", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = Watch.from_dict(json.loads(out.read_text())) if out.exists() else None
        if found is None or sum(found.inputs.values()) < inputs:
            raise RuntimeError(f"atheris ended early (code {ended.returncode}): {ended.stderr}")
    return found
