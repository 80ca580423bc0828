"""Ratios of bytes and changes of accuracy, by hand; and a short run that books what it sends."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from benchmarks import cut_bytes
from benchmarks.grid import Job, Metrics
from sfl_flower.errors import ConfigError


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cut_bytes.add_arguments(parser.add_argument_group("cut_bytes"))
    return parser.parse_args(list(words))


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds: accuracy falls by 0.01 and 0.03, bytes by four."""

    def results(jobs: Any, *_: Any) -> dict[str, Metrics]:
        return {job.key(): found(job) for job in jobs}

    def found(job: Job) -> Metrics:
        seed = job.options["seed"]
        if "smashed" in job.options:
            return {"accuracy": 0.79 - 0.02 * seed, "cut_bytes": 100.0}
        return {"accuracy": 0.8, "cut_bytes": 400.0}

    monkeypatch.setattr(cut_bytes, "run_jobs", results)
    words = "--cut_bytes-places minilm --cut_bytes-pairs int8 --cut_bytes-seeds 2".split()
    ratio, change = cut_bytes.run(parsed(*words))
    assert (ratio.name, ratio.value, ratio.target) == ("cut_bytes_ratio_minilm_int8", 4.0, 3.9)
    assert change.value == pytest.approx(-0.02) and "deviation over seeds 0.0141" in change.setting


def test_runs_of_a_seed_differ_in_the_encodings_alone() -> None:
    place = cut_bytes.PLACES["fashion"]
    plain, coded = (
        cut_bytes.coded(place, pair, 1, 5)
        for pair in (cut_bytes.PLAIN, {"smashed": "int4", "gradients": "int8"})
    )
    assert coded.options == {**plain.options, "smashed": "int4", "gradients": "int8"}
    assert plain.options["client_lr"] == 0.5 and plain.options["rounds"] == 5


@pytest.mark.flower
def test_bytes_are_those_across_the_cut() -> None:
    options = {"rounds": 2, "clients": 2, "batch_size": 8, "probes": 1, "seed": 0}
    plain = cut_bytes.train(Job("digits", "ho_sfl", options))["cut_bytes"]
    assert plain == 2 * 2 * 8 * (2 * 4 * 8 + 1)  # z and λ of eight numbers, and a label
    int8 = cut_bytes.train(
        Job("digits", "ho_sfl", {**options, "smashed": "int8", "gradients": "int8"})
    )["cut_bytes"]
    assert int8 == 2 * 2 * 8 * (2 * (8 + 2) + 1)


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="--cut_bytes-places"):
        next(cut_bytes.run(parsed("--cut_bytes-places", "mars")))
    with pytest.raises(ConfigError, match="--cut_bytes-pairs"):
        next(cut_bytes.run(parsed("--cut_bytes-pairs", "mars")))
