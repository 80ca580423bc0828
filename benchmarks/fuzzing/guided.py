"""Inputs that atheris finds by the lines they reach: ``python -m benchmarks.fuzzing.guided``.

A process of its own: the decoders are instrumented as they are imported, and libFuzzer ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOMS = ("wire", "zo", "report", "server.checkpoint", "methods", "options", "run.run_config")
"""What is instrumented of the package: where bytes and settings are read."""
FOUND = "watch.json"
"""File of what came of the inputs, in the folder given: libFuzzer ends the process."""
FIRST = 256
"""Random inputs from which the search begins."""
MOST_MEGABYTES, SECONDS = 8192, 120


def main() -> None:
    """Read the command line and fuzz."""
    import atheris

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder for what is made")
    args = parser.parse_args()
    with atheris.instrument_imports(include=[f"sfl_flower.{room}" for room in ROOMS]):
        from benchmarks.fuzzing.corpus import corpus
        from benchmarks.fuzzing.targets import targets
        from benchmarks.fuzzing.watch import Watch
        from benchmarks.trust_fuzz import LENGTH, kind_of
        from sfl_flower.data.seeding import generator
    root, out = args.root, args.root / FOUND
    (root / "scratch").mkdir()
    decoders = targets(corpus(root), root / "scratch")
    watch = Watch()
    first = root / "inputs"
    first.mkdir()
    draw = generator("trust guided", args.seed)
    for number in range(FIRST):
        (first / str(number)).write_bytes(draw.bytes(LENGTH))

    def one(data: bytes) -> None:
        if sum(watch.inputs.values()) < args.inputs:
            kind = kind_of(data)
            watch.run(kind, decoders[kind], data[2:])
        if sum(watch.inputs.values()) == args.inputs:
            out.write_text(json.dumps(watch.to_dict()), encoding="utf-8")

    words = [
        f"-runs={args.inputs}", f"-seed={args.seed + 1}", f"-timeout={SECONDS}", "-max_len=96",
        f"-rss_limit_mb={MOST_MEGABYTES}", "-verbosity=0", "-len_control=0",
    ]  # fmt: skip
    with watch.watching():
        atheris.Setup([sys.argv[0], *words, str(first)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
