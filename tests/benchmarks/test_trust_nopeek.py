"""The part `nopeek` of the benchmark `trust`: an attacker that reads what is there to be read."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import trust_nopeek
from benchmarks.grid import Job
from sfl_flower import RunConfig, simulate
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
    y = torch.arange(300) % 3  # labels that tell nothing of the images
    known, sent = (x[:200], y[:200]), (x[200:], y[200:])
    open_, closed = (
        trust_nopeek.decoder_error(half, known, sent, 3, 5) for half in (nn.Flatten(), hides)
    )
    assert open_ < 0.02 and closed == pytest.approx(1 / 12, rel=0.1)


def test_every_method_runs_and_says_what_it_measured() -> None:
    for method in ("ho_sfl", trust_nopeek.FIRST_ORDER, trust_nopeek.FROZEN):
        found = trust_nopeek.train(trust_nopeek.job("digits", method, 0.3, 0, 2, 1, "int8"))
        assert set(found) == {"accuracy", "chosen_by", "dcor", "mse", "guess"}
        assert 0 <= found["dcor"] <= 1 and 0 < found["mse"] < 1.1 * found["guess"]


def test_backprop_takes_the_step_that_scalars_estimate() -> None:
    """The same mini-batches, λ, term, clip and rate: both server halves end at the same bits."""
    task = trust_nopeek.BEDS["digits"].load()
    options = {**trust_nopeek.RUN, "seed": 0, "rounds": 1, "nopeek": 5.0, "clip_norm": 0.1}
    run = simulate(task, "ho_sfl", backend="inline", probes=48, **options)
    halves = task.build(RunConfig(seed=0).model_seed)
    before = [value.clone() for value in halves.client.state_dict().values()]
    trust_nopeek.by_backprop(task, halves, options)
    for name, value in halves.server.state_dict().items():
        assert torch.equal(value, run.model[name])
    names = list(halves.client.state_dict())
    exact, estimated = (
        torch.cat([(model[n] - old).flatten() for n, old in zip(names, before, strict=True)])
        for model in (halves.client.state_dict(), run.model)
    )
    # Five clients with 48 directions each, of d = 520; unrelated steps have a cosine of 0.04.
    assert functional.cosine_similarity(exact, estimated, 0) > 0.3
    # The mean of five gradients clipped to 0.1, at rate 0.3: 0.03 where they are the same, and
    # 0.03/√5 where none has to do with another.
    assert 0.0134 < float(exact.norm()) < 0.03


def made(job: Job) -> dict[str, float]:
    """Return results that are the worse the larger the weight, on the attacker's images less."""
    alpha = job.options["nopeek"]
    own = {"mse": 1 + alpha, "guess": 3.0, "dcor": 0.5}
    return {**own, "accuracy": 90 - 4 * alpha, "chosen_by": 90 - 2 * alpha}


def done(jobs: list[Job], workers: int, out: Path | None, train: object) -> dict[str, object]:
    return {job.key(): made(job) for job in jobs}


def test_the_weight_is_chosen_on_other_images_than_the_accuracy_is_said_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trust_nopeek, "run_jobs", done)
    figures = list(trust_nopeek.figures(parsed("--trust-nopeek-weights", "1,2.5e-1,0.5")))
    found = {figure.name: figure for figure in figures}
    best = found["nopeek_ratio_digits_ho_sfl"]
    assert (best.value, best.target, best.met) == (1.5, 1.5, True)
    assert "weight 0.5" in best.setting and "+2.0 points on the other" in best.setting
    assert found["nopeek_ratio_digits_ho_sfl_1"].value == 2.0
    assert found["nopeek_ratio_digits_ho_sfl_0_25"].value == 1.25


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--trust-nopeek-beds", "mnist"), "--trust-nopeek-beds is 'mnist'"),
        (("--trust-nopeek-weights", "x"), "--trust-nopeek-weights is 'x'; it must be numbers"),
        (("--trust-nopeek-weights", "0.3,0"), "it must be numbers above 0"),
        (("--trust-nopeek-seeds", "0"), "--trust-nopeek-seeds is 0; it must be at least 1"),
        (("--trust-nopeek-smashed", "int3"), "int3"),
    ],
)
def test_options_are_refused_before_the_first_run(
    words: tuple[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_nopeek, "run_jobs", lambda *_: pytest.fail("a run began"))
    with pytest.raises(ConfigError, match=says):
        next(trust_nopeek.figures(parsed(*words)))
