"""The parts of the benchmark `trust`, each in a form of seconds."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import trust, trust_faults, trust_fuzz, trust_labels, trust_soak
from benchmarks.faulty_grid import FAULTS, FaultyGrid
from benchmarks.figure import Figure
from benchmarks.fuzzing.corpus import Corpus, Example, corpus
from benchmarks.fuzzing.damage import Draw, damaged_bytes, damaged_json
from benchmarks.fuzzing.targets import targets
from benchmarks.fuzzing.watch import Watch
from benchmarks.grid import Job
from benchmarks.small import small_task
from benchmarks.trial import client_app, executed
from benchmarks.trust_resume import FREE, Strike, differences
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.run.run import Plan
from sfl_flower.wire.draft import PLAIN
from tests.wire.contents import MESSAGES

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.flower


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trust.add_arguments(parser.add_argument_group("trust"))
    return parser.parse_args(list(words))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Put Flower's log back: some parts turn it off."""
    log = logging.getLogger("flwr")
    level = log.level
    yield
    log.setLevel(level)


def test_parts_run_in_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("soak", "fuzz"):
        module = {"soak": trust_soak, "fuzz": trust_fuzz}[name]
        monkeypatch.setattr(module, "figures", lambda args, n=name: iter([Figure(n, 1.0, "")]))
    found = trust.run(parsed("--trust-parts", "soak,fuzz"))
    assert [figure.name for figure in found] == ["soak", "fuzz"]
    with pytest.raises(ConfigError, match="--trust-parts is 'peace'; it must be one of resume, "):
        next(trust.run(parsed("--trust-parts", "soak,peace")))


# Resume


def test_killed_runs_come_to_the_bits_of_a_clean_one() -> None:
    """A process of its own: it forks, which a process that has trained must not."""
    words = ["trust", "--json", "--trust-parts", "resume", "--trust-resume-kills", "3"]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--trust-resume-runs", "frozen,heron"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    figure = json.loads(ended.stdout)
    assert (figure["name"], figure["value"]) == ("resume_equal_share", 1.0), figure["setting"]
    assert figure["setting"].startswith("4 kills of 3 runs")  # the third is killed twice


def test_what_differs_between_two_directories_is_named(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"a")
        lines = [{"round": n, "loss": 0.5, **dict.fromkeys(FREE, n)} for n in (0, 1)]
        (out / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert differences(one, two) == []
    history = two / "history.jsonl"
    text = history.read_text()
    history.write_text(text.replace('"seconds": 1', '"seconds": 2'))
    assert differences(one, two) == []
    history.write_text(text.replace('"loss": 0.5', '"loss": 0.25', 1))
    (two / "model.safetensors").write_bytes(b"b")
    (two / "journal.bin").write_bytes(b"")
    assert differences(one, two) == ["model.safetensors", "journal.bin", "round 0: loss"]
    history.write_text(text.split("\n")[0] + "\n")
    assert "1 of 2 records" in differences(one, two)


def test_a_strike_counts_what_happens_to_files_of_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    torn = out / ".model.safetensors.7.tmp"
    torn.write_bytes(b"0123456789")
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, signal: killed.append(signal))
    strike = Strike(out, at=2, share=0.5)
    strike("open", (str(tmp_path / "other"), "r", 0))
    strike("import", (str(torn),))
    strike("open", (str(out / "config.json"), "r", 0))
    assert (strike.count, killed) == (1, [])
    strike("open", (str(torn), None, 0))
    assert (strike.count, len(killed), torn.read_bytes()) == (2, 1, b"01234")
    kept = out / ".checkpoint.previous.safetensors.7.tmp"
    os.link(torn, kept)
    Strike(out, at=1, share=0.5)("open", (str(kept), None, 0))
    Strike(out, at=1, share=0.5)("os.rename", (str(torn), str(out / "model.safetensors"), -1, -1))
    assert (len(killed), torn.read_bytes()) == (3, b"01234")
    history = out / "history.jsonl"
    Strike(out, at=1, share=0.5)("open", (str(history), "ab", 0))
    assert history.read_text() == '{"round": 3, "sam'


# Faults and soak


def listened(share: float, seed: int = 0) -> FaultyGrid:
    task = small_task(40)
    options = {"task": "small", "method": "frozen", "clients": 4, "rounds": 12, "batch_size": 4}
    plan = Plan.read({**options, "timeout": 0.02})
    grid = FaultyGrid(client_app(task, plan), 4, share, seed)
    executed(grid, task, plan)
    return grid


def test_faults_strike_as_often_as_they_should_and_the_same_ones_again() -> None:
    grid = listened(0.5)
    struck = sum(grid.struck[fault] for fault in FAULTS)
    assert grid.struck["replies"] == 48
    assert 12 <= struck <= 36 and all(grid.struck[fault] for fault in FAULTS)
    assert listened(0.5).struck == grid.struck != listened(0.5, seed=1).struck
    assert listened(0.0).struck == {"replies": 48}


def test_a_run_with_faults_has_an_accuracy_beside_the_clean_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def job(method: str, seed: int, rounds: int, share: float) -> Job:
        own = {"clients": 4, "batch_size": 8, "eval_every": 1, "seed": seed, "rounds": rounds}
        return Job("digits", method, {**own, "share": share, "task.model": "conv"})

    found = trust_faults.train(job("frozen", 0, 2, 0.9))
    assert 0.0 <= found["accuracy"] <= 1.0 and found["replies"] == 8.0
    monkeypatch.setattr(trust_faults, "job", job)
    path = tmp_path / "runs.jsonl"
    for share, accuracy in ((0.0, 0.9), (0.3, 0.875)):
        got = {"accuracy": accuracy, "replies": 8.0, **dict.fromkeys(FAULTS, 1.0)}
        line = {"run": job("heron", 0, 7, share).key(), "metrics": got}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    words = ["--trust-faults-methods", "heron", "--trust-faults-rounds", "7"]
    more = ["--trust-faults-seeds", "1", "--trust-faults-out", str(path)]
    (figure,) = trust_faults.figures(parsed(*words, *more))
    assert figure.name == "loss_under_faults_heron"
    assert figure.value == pytest.approx(0.025) and figure.met is False


def test_a_short_soak_ends_where_the_journal_does() -> None:
    words = ["--trust-soak-rounds", "40", "--trust-soak-clients", "5"]
    memory, files, equal = trust_soak.figures(parsed(*words))
    assert (equal.name, equal.value) == ("soak_equal_digests", 1.0), equal.setting
    # Forty rounds of a small model: a leak of every message would be far above a fifth.
    assert files.name == "soak_directory_growth" and 0.8 < memory.value < 1.2


# Fuzzing


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Path]:
    """Two short runs, and an example of every message."""
    root = tmp_path_factory.mktemp("corpus")
    found = corpus(root, (0, 15))
    found.messages += [Example(type(m), m.to_content(), _sent(m)) for m in MESSAGES.values()]
    (root / "scratch").mkdir()
    return found, root / "scratch"


def _sent(message: Any) -> Any:
    return getattr(message, "encodings", PLAIN)


def test_the_corpus_is_read_as_it_is(material: tuple[Corpus, Path]) -> None:
    found, _ = material
    for example in found.messages:
        example.read(example.content)
    kinds = {example.kind.__name__ for example in found.messages}
    assert {"ForwardRequest", "ForwardReply", "ProbeReply", "HERONRequest", "LocalReply"} <= kinds
    assert found.journals and len(found.checkpoints) == 2


def test_no_decoder_crashes_hangs_or_is_silent(
    material: tuple[Corpus, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.fuzzing.watch.SLOW", 5.0)  # a slow machine is no hang
    watch = Watch()
    trust_fuzz.fuzz(watch, targets(*material), 1500, 7)
    assert (watch.crashes, watch.hangs, watch.silent, watch.large) == ([], [], [], [])
    assert set(watch.inputs) == set(trust_fuzz.KINDS)
    assert min(watch.refused[kind] for kind in watch.inputs if kind != "resumes") > 50


def test_a_watch_sees_what_a_decoder_must_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(draw: Draw) -> None:
        raise KeyError("round")

    def silence(draw: Draw) -> None:
        raise WireError(" ")

    def refuse(draw: Draw) -> None:
        raise WireError("it is not legal.")

    monkeypatch.setattr("benchmarks.fuzzing.watch.LONGEST", 0.05)
    monkeypatch.setattr("benchmarks.fuzzing.watch.SLOW", 0.04)
    watch = Watch()
    decoders = {"a": crash, "b": silence, "c": refuse, "d": _megabyte, "e": _forever}
    with watch.watching():
        for kind, decoder in decoders.items():
            watch.run(kind, decoder, b"\x05")
    assert watch.crashes == ["a, KeyError: 'round', input 05"]
    assert watch.silent == ["b, WireError, input 05"]
    assert watch.hangs == ["e, not back after 0.05 s, input 05"]
    assert watch.found == {"crashes": 1, "silent": 1, "hangs": 1}, "a hang counts once"
    assert (dict(watch.refused), dict(watch.read)) == ({"b": 1, "c": 1}, {"d": 1})
    assert 2**20 <= watch.largest < 2**21
    again = Watch.from_dict(json.loads(json.dumps(watch.to_dict())))
    again.add(watch)
    assert (again.found["crashes"], again.largest) == (2, watch.largest)


def _forever(draw: Draw) -> object:
    while True:
        pass


def _megabyte(draw: Draw) -> object:
    return np.zeros(2**20, np.uint8)


def test_damage_follows_from_its_bytes_alone() -> None:
    draws = [bytes([n]) * 16 for n in range(64)]
    found = [damaged_bytes(b"0123456789", Draw(data)) for data in draws]
    assert found == [damaged_bytes(b"0123456789", Draw(data)) for data in draws]
    assert len(set(found)) > 20
    value = {"a": [1, 2], "b": {"c": "x"}}
    assert {repr(damaged_json(value, Draw(data))) for data in draws} - {repr(value)}
    assert value == {"a": [1, 2], "b": {"c": "x"}}
    assert [Draw(b"\x07\x00\x01").below(n) for n in (5, 300)] == [2, 7]


def test_the_first_two_bytes_choose_the_decoder() -> None:
    counts = dict.fromkeys(trust_fuzz.KINDS, 0)
    for number in range(256):
        counts[trust_fuzz.kind_of(bytes([number, 0]))] += 1
    assert counts == trust_fuzz.KINDS


def test_labels_are_read_as_far_as_they_stay_and_cost_accuracy_to_hide(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for method in trust_labels.METHODS:
        for epsilon, accuracy in ((0.0, 0.75), (2.0, 0.5)):
            line = {
                "run": trust_labels.job(method, epsilon, 7, 0).key(),
                "metrics": {"accuracy": accuracy},
            }
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
    words = ["--trust-labels-epsilons", "0,2", "--trust-labels-rounds", "7"]
    more = ["--trust-labels-seeds", "1", "--trust-labels-out", str(path)]
    found = {each.name: each for each in trust_labels.figures(parsed(*words, *more))}
    assert found["labels_read_0"].value == 1.0
    assert 0.35 < found["labels_read_2"].value < 0.6  # of which 0.451 stay as they are
    assert found["labels_accuracy_u_shaped_0"].value == 0.75
    assert found["labels_accuracy_frozen_2"].value == 0.5
    assert len(found) == 2 + 2 * len(trust_labels.METHODS)
