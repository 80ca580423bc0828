"""The part `dp` of the benchmark `trust`: legal runs, and what is said of ε."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import trust_dp
from benchmarks.grid import Job
from sfl_flower.methods import read_options


def test_every_row_is_a_legal_run_and_rows_differ_in_their_budget() -> None:
    found = {}
    for label in (*trust_dp.RATES, "frozen"):
        job = trust_dp.job(label, 4, 0)
        own = {k: v for k, v in job.options.items() if not k.startswith("task.")}
        config, _, settings, _ = read_options({"method": job.method, **own})
        found[label] = vars(settings).get("dp_epsilon")
        assert (config.rounds, config.seed) == (4, 0)
    assert found == {"inf": 0.0, "6": 6.0, "2": 2.0, "frozen": None}


def test_epsilon_is_that_of_the_accountant() -> None:
    assert trust_dp._epsilon().value == pytest.approx(1.0, abs=1e-3)


def test_accuracies_say_what_epsilon_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def done(jobs: list[Job], workers: int, out: Path | None) -> dict[str, object]:
        return {job.key(): {"accuracy": 0.5 + 0.1 * job.options["seed"]} for job in jobs}

    monkeypatch.setattr(trust_dp, "run_jobs", done)
    parser = argparse.ArgumentParser()
    trust_dp.add_arguments(parser.add_argument_group("trust"))
    args = parser.parse_args(["--trust-dp-rounds", "4", "--trust-dp-seeds", "2"])
    figures = list(trust_dp._accuracies(args))
    assert (figures[0].name, figures[0].value) == ("dp_accuracy_minilm_inf", 0.55)
    assert len(figures) == 4
    assert all("smashed data and labels are sent in the clear" in f.setting for f in figures)
