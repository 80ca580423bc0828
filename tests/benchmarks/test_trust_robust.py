"""The benchmark of attackers: points that are lost, of results that are given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import trust_robust
from benchmarks.attackers import LEFT_OUT
from benchmarks.grid import Job
from benchmarks.trust_robust import HONEST, MEAN, job
from sfl_flower.errors import ConfigError

ROUNDS = 2


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trust_robust.add_arguments(parser.add_argument_group("trust"))
    return parser.parse_args(["--trust-robust-rounds", str(ROUNDS), *words])


def test_the_best_aggregator_is_held_against_the_honest_run(tmp_path: Path) -> None:
    """A scaled attack costs the mean 40 points, a small one 4; the best loses 1 and 3."""
    path = tmp_path / "runs.jsonl"
    given = {
        (HONEST, MEAN): 0.9,
        (LEFT_OUT, MEAN): 0.84,
        ("scaled", MEAN): 0.5,
        ("scaled", "median"): 0.89,
        ("scaled", "clip:1"): 0.7,
        ("little", MEAN): 0.86,
        ("little", "median"): 0.87,
        ("little", "clip:1"): 0.85,
    }
    lines = [
        {
            "run": job("heron", attack, aggregator, 0, ROUNDS).key(),
            "metrics": {
                "accuracy": accuracy,
                "found": 2.0,
                "outlying_liar": 2.0,
                "outlying_honest": 1.0,
            },
        }
        for (attack, aggregator), accuracy in given.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = "--trust-robust-beds heron --trust-robust-attacks scaled,little".split()
    words += ["--trust-robust-with", "median,clip:1", "--trust-robust-out", str(path)]
    found = {figure.name: figure for figure in trust_robust.figures(parsed(*words))}
    assert list(found) == [
        f"{what}_heron_{attack}"
        for attack in ("little", "scaled")
        for what in ("mean_loses", "robust_gap")
    ] + ["robust_gap"]
    values = {name: figure.value for name, figure in found.items()}
    assert values["mean_loses_heron_scaled"] == pytest.approx(40.0)
    assert values["robust_gap_heron_scaled"] == pytest.approx(1.0)
    assert values["mean_loses_heron_little"] == pytest.approx(4.0)
    assert values["robust_gap"] == pytest.approx(1.0)  # where the mean loses little, none counts
    assert [figure.met for figure in found.values() if figure.name.endswith("scaled")] == [True] * 2
    assert found["robust_gap_heron_little"].met is None
    assert "there is little to mend" in found["robust_gap_heron_little"].setting
    said = found["robust_gap_heron_scaled"].setting
    assert "best median" in said and "90.0 honest, 84.0 without the liars, mean 50.0" in said
    told = "outlying they were in 2 or more, honest ones in 1 or fewer"
    assert told in found["robust_gap_heron_scaled"].setting


def test_all_runs_of_a_bed_go_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def run_jobs(jobs: list[Job], workers: int, *more: object) -> dict[str, dict[str, float]]:
        asked.extend((len(jobs), workers))
        return {job.key(): {"accuracy": 0.5, "found": 0.0} for job in jobs}

    monkeypatch.setattr(trust_robust, "run_jobs", run_jobs)
    words = "--trust-robust-beds heron --trust-robust-with median --trust-robust-attacks scaled"
    list(trust_robust.figures(parsed(*words.split(), *"--trust-robust-workers 3".split())))
    # The honest run, that without the liars, the mean and the median under attack; three workers.
    assert asked == [4, 3]


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--trust-robust-attacks is 'lies'; it must be one of"):
        list(trust_robust.figures(parsed("--trust-robust-attacks", "lies")))


@pytest.mark.flower
def test_an_attacked_run_is_trained() -> None:
    found = trust_robust.train(job("ho_sfl", "scaled", "clip:1", 0, ROUNDS))
    assert 0 < found["accuracy"] < 1 and found["found"] == 2.0  # it was clipped in both rounds
    silent = trust_robust.train(job("ho_sfl", LEFT_OUT, MEAN, 0, ROUNDS))
    assert silent["found"] == 0.0 and silent["accuracy"] != found["accuracy"]
    krum = trust_robust.train(job("ho_sfl", "scaled", "multikrum:1", 0, ROUNDS))
    assert krum["outlying_honest"] < krum["outlying_liar"] == krum["found"]
