"""Bytes to an accuracy by hand, and a short run of each method that is set beside SplitFed V2."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest

from benchmarks import bytes_to_accuracy as benchmark
from benchmarks import learning
from benchmarks.grid import Job, Metrics
from sfl_flower.errors import ConfigError


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser.add_argument_group("bytes_to_accuracy"))
    return parser.parse_args([f"--bytes_to_accuracy-{word}" for word in words])


def told(accuracy: dict[int, float], each: float) -> Metrics:
    """Return what `train` does of a run that sends `each` bytes a round."""
    return {f"accuracy {n}": value for n, value in accuracy.items()} | {
        f"bytes {n}": each * n for n in accuracy
    }


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """SplitFed V2 ends at 0.82, so 0.81 counts: 0.815 at round 20, of 1 000 bytes each."""

    def results(jobs: Any, *_: Any) -> dict[str, Metrics]:
        return {job.key(): found(job) for job in jobs}

    def found(job: Job) -> Metrics:
        if job.method == "splitfed_v2":
            return told({10: 0.7, 20: 0.815, 30: 0.78, 40: 0.82}, 1000.0)
        if job.method == "heron" and job.options["smashed"] == "int8":
            return told({10: 0.7, 40: 0.8125}, 100.0)
        return told({40: 0.80}, 10.0)

    monkeypatch.setattr(benchmark, "run_jobs", results)
    args = parsed("pairs=int8,int4_deflate", "seeds=2", "rounds=40")
    figures = {figure.name: figure for figure in benchmark.run(args)}
    assert figures["bytes_to_accuracy_heron_int8"].value == 40 * 100 / (20 * 1000)
    assert figures["bytes_to_accuracy_heron_int4_deflate"].value == math.inf
    best = figures["bytes_to_accuracy_heron"]
    assert (best.value, best.target, best.met) == (0.2, 1 / 12, False)
    assert best.setting.endswith("int8")
    assert figures["bytes_to_accuracy_ho_sfl"].value == math.inf
    assert "not at all" in figures["bytes_to_accuracy_ho_sfl_int8"].setting


def test_what_counts_is_the_mean_over_seeds() -> None:
    """One seed never reaches 0.82 on its own, the mean does at round 20; 0.9 nobody reaches."""
    seeds = [told({10: 0.7, 20: 0.79}, 10.0), told({10: 0.8, 20: 0.87}, 30.0)]
    assert benchmark.spent_until(seeds, 0.82) == (20 * 10 + 20 * 30) / 2
    assert benchmark.spent_until(seeds, 0.9) == math.inf


def test_runs_are_those_of_learning_in_other_ways_down() -> None:
    plain = learning.job("heron", 0.05, 1, 50)
    job = benchmark.forward_only("heron", "int8", 1, 50, 10)
    ways = {"smashed": "int8", "downlink": "auto", "head_downlink": "int8", "eval_every": 5}
    assert job.options == {**plain.options, **ways}
    ours = benchmark.forward_only("ho_sfl", "int4_deflate", 1, 50, 10)
    assert ours.options["gradients"] == "int4+deflate" and ours.options["eval_every"] == 5
    assert benchmark.first_order(0, 3, 10).options["eval_every"] == 1


@pytest.mark.flower
def test_a_run_tells_accuracy_and_bytes_of_each_evaluation() -> None:
    options = {"rounds": 2, "clients": 2, "eval_every": 1, "seed": 0, "downlink": "auto"}
    found = benchmark.train(Job("digits", "heron", options))
    assert sorted(found) == [f"{what} {n}" for what in ("accuracy", "bytes") for n in range(3)]
    assert 0 == found["bytes 0"] < found["bytes 1"] < found["bytes 2"]


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="--bytes_to_accuracy-methods"):
        next(benchmark.run(parsed("methods=mars")))
    with pytest.raises(ConfigError, match="--bytes_to_accuracy-pairs"):
        next(benchmark.run(parsed("pairs=mars")))
