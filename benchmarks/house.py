"""The structure of the package, what a client app imports, what an extension touches, and faults.

Everything is read from the source and the tests: nothing is trained.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from benchmarks.figure import Figure

__all__ = ["ENTRIES", "open_faults", "run", "touched"]

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "rooms": 22,
    "floors": 11,
    "arrows_up": 0,
    "top_level_modules": 5,
    "largest_module": 350,
}
PROOFS: dict[str, tuple[str, ...]] = {
    "touch_method": (
        "sfl_flower.strategies.fedavg", "sfl_flower.clients.fedavg", "sfl_flower.wire.fedavg",
    ),
    "touch_estimator": ("sfl_flower.zo.jvp",),
    "touch_codec": ("sfl_flower.wire.encodings.floats",),
    "touch_aggregator": ("sfl_flower.server.robust",),
}  # fmt: skip
"""What was added as an extension, and the modules that it brought."""
ENTRIES = tuple(
    f"{letter}{number}"
    for letter, last in (("a", 19), ("b", 10), ("c", 13), ("d", 6), ("e", 12))
    for number in range(1, last + 1)
)
"""The faults that were found by trial, by their numbers; each has a test named after it."""


def structure() -> ModuleType:
    """Return the script that reads the imports."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts" / "structure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def touched(modules: tuple[str, ...]) -> list[str]:
    """Return the files of the package, beside these modules' own, that name them.

    Parameters
    ----------
    modules : tuple of str
        Modules that an extension brought.
    """
    read = structure()
    own = {f"{name.replace('.', '/')}.py" for name in modules}
    if missing := [name for name in own if not (ROOT / name).is_file()]:
        raise FileNotFoundError(f"There is no {missing[0]}: the proof is gone.")
    return [
        path
        for path, source in read.modules(ROOT)
        if path not in own and any(name in read.imports(source, path) for name in modules)
    ]


def open_faults() -> list[str]:
    """Return the faults that no test is named after."""
    tests = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = (
        re.findall(r"^ *def test_((?:[a-e]\d+_)+)", text, flags=re.MULTILINE) for text in tests
    )
    named = {entry for found in names for name in found for entry in name.split("_")}
    return [entry for entry in ENTRIES if entry not in named]


def client_app() -> tuple[int, float]:
    """Return the package's modules that a client app loads, and their share in ms.

    The time is that of importing it in a process that has torch, numpy and Flower already.
    """
    code = (
        "import sys, time, torch, numpy, flwr.app, flwr.clientapp\n"
        "start = time.perf_counter()\n"
        "import sfl_flower.run.client_app\n"
        "took = time.perf_counter() - start\n"
        "print(sum(name.partition('.')[0] == 'sfl_flower' for name in sys.modules), 1e3 * took)\n"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
        for _ in range(3)
    ]
    counts, times = zip(*(map(float, run.stdout.split()) for run in found), strict=True)
    return int(counts[0]), min(times)


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the figures of the house."""
    source = "python scripts/structure.py"
    for name, value in structure().measure(ROOT).items():
        target = TARGETS.get(name)
        yield Figure(name, value, "", target, source, lower_is_better=True)
    modules, took = client_app()
    yield Figure(
        "client_app_modules", modules, "", 70, "import sfl_flower.run.client_app",
        lower_is_better=True,
    )  # fmt: skip
    setting = "the same import where torch and Flower are loaded; best of 3"
    yield Figure("client_app_ms", took, "ms", None, setting, lower_is_better=True)
    for name, proof in PROOFS.items():
        files = touched(proof)
        setting = f"{', '.join(proof)} named in {', '.join(files)}"
        yield Figure(name, len(files), "files", 1, setting, lower_is_better=True)
    left = open_faults()
    setting = f"{len(ENTRIES)} faults; without a test: {', '.join(left) or 'none'}"
    yield Figure("faults_open", len(left), "", 0, setting, lower_is_better=True)
