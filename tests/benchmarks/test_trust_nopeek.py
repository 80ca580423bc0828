"""The part `nopeek` of the benchmark `trust`: an attacker that reads what is there to be read."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import trust_nopeek
from benchmarks.grid import Job
from sfl_flower.errors import ConfigError


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trust_nopeek.add_arguments(parser.add_argument_group("trust"))
    return parser.parse_args(list(words))


def test_a_decoder_reads_a_half_that_hides_nothing_and_none_that_hides_all() -> None:
    """Of a half that gives 0 the mean image is left, whose error is the variance of the pixels."""
    x = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(16, 5)
    nn.init.zeros_(layer.weight)
    hides = nn.Sequential(nn.Flatten(), layer)
    open_, closed = (
        trust_nopeek.decoder_error(half, x[:200], x[200:], 300) for half in (nn.Flatten(), hides)
    )
    assert open_ < 0.02 and closed == pytest.approx(1 / 12, rel=0.1)


def test_every_method_runs_and_says_what_it_measured() -> None:
    for method in ("ho_sfl", trust_nopeek.FIRST_ORDER, trust_nopeek.FROZEN):
        found = trust_nopeek.train(trust_nopeek.job("digits", method, 0.3, 0, 2, 5, "int8"))
        assert set(found) == {"accuracy", "dcor", "mse"}
        assert 0 <= found["dcor"] <= 1 and found["mse"] > 0


def test_the_best_ratio_is_of_weights_that_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def done(jobs: list[Job], workers: int, out: Path | None, train: object) -> dict[str, object]:
        return {
            job.key(): {
                "mse": 1.0 + job.options["nopeek"],
                "accuracy": 90.0 - 2 * job.options["nopeek"],
                "dcor": 0.5,
            }
            for job in jobs
        }

    monkeypatch.setattr(trust_nopeek, "run_jobs", done)
    figures = list(trust_nopeek.figures(parsed("--trust-nopeek-weights", "0.25,0.5,1")))
    found = {figure.name: figure for figure in figures}
    best = found["nopeek_ratio_digits_ho_sfl"]
    assert (best.value, best.target, best.met) == (1.5, 1.5, True)
    assert found["nopeek_ratio_digits_ho_sfl_1"].value == 2.0
    with pytest.raises(ConfigError, match="--trust-nopeek-beds is 'mnist'"):
        next(trust_nopeek.figures(parsed("--trust-nopeek-beds", "mnist")))
