"""How blocks grow with the batch, by hand, and which passes that saves."""

from __future__ import annotations

import logging

import pytest
import torch

from benchmarks.language_models import build, tokens
from sfl_flower.profiling import peaks
from sfl_flower.profiling.cuts import profile_cuts
from sfl_flower.profiling.peaks import Growth, Pass, Peak


class Runs:
    """A pass at the larger batch that counts how often it is asked for."""

    def __init__(self, *levels: int) -> None:
        self.levels, self.count = list(levels), 0

    def __call__(self) -> Pass:
        self.count += 1
        return Pass(self.levels, 0.0)


def learned() -> Growth:
    """Return what a pass with blocks of 10 a sample and of 700 whatever the batch teaches."""
    growth = Growth(2, 3, 8)
    # 20 for two samples come, 700 come, 20 go.
    assert growth.predict(Pass([20, 720, 700], 0.0), Runs(30, 730, 700)) == Peak(80 + 700)
    return growth


def test_the_first_pass_takes_both_batches() -> None:
    run = Runs(30, 730, 700)
    assert Growth(2, 3, 8).predict(Pass([20, 720, 700], 0.0), run) == Peak(780)
    assert run.count == 1


def test_blocks_of_known_sizes_need_no_second_batch() -> None:
    run = Runs()
    assert learned().predict(Pass([20, 40, 60, 40], 0.0), run) == Peak(3 * 80)
    assert learned().predict(Pass([], 0.0), run) == Peak(0)
    assert run.count == 0


def test_a_size_that_matters_and_is_new_needs_one() -> None:
    run = Runs(600, 1300)
    assert learned().predict(Pass([400, 1100], 0.0), run) == Peak(8 * 200 + 700)
    assert run.count == 1


def test_a_new_size_that_does_not_matter_needs_none() -> None:
    run = Runs()
    # 4 bytes for two samples are at most 16 for eight.
    assert learned().predict(Pass([700, 1400, 1404], 0.0), run) == Peak(1416)
    assert run.count == 0


def test_a_size_that_grows_in_two_ways_needs_one_where_it_matters() -> None:
    growth = Growth(2, 3, 8)
    growth.predict(Pass([60, 120], 0.0), Runs(90, 150))  # 60 that grow, 60 that do not
    run = Runs(60)
    assert growth.predict(Pass([60], 0.0), run) == Peak(60)
    assert run.count == 1
    growth.predict(Pass([90_000], 0.0), Runs(90_000))
    run = Runs()
    assert growth.predict(Pass([90_000, 90_060, 90_000, 90_060], 0.0), run) == Peak(90_240)
    assert run.count == 0


def test_passes_that_differ_are_extended_by_their_peaks() -> None:
    run = Runs(30, 40, 50)
    assert Growth(2, 3, 8).predict(Pass([20, 40], 0.0), run) == Peak(50 + 5 * 10)


def test_a_batch_of_the_small_size_is_measured() -> None:
    run = Runs(9)
    assert Growth(2, 2, 2).predict(Pass([5, 3], 0.0), run) == Peak(5, 5)
    assert run.count == 0
    assert Growth(2, 3, 3).predict(Pass([5, 3], 0.0), run) == Peak(9, 9)


def test_a_transformer_on_a_small_batch_is_predicted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPT-2 allocates otherwise on one sample, where position embeddings are not broadcast."""
    model, ids = build("gpt2-lm"), tokens()[:1].repeat(8, 1)
    one, two, three = (len(peaks.backprop(model, ids[:n]).levels) for n in (1, 2, 3))
    assert one != two == three
    sizes: list[int] = []
    backprop = peaks.backprop

    def counted(half: torch.nn.Module, x: torch.Tensor) -> Pass:
        sizes.append(len(x))
        return backprop(half, x)

    monkeypatch.setattr("sfl_flower.profiling.cuts.backprop", counted)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        rows = profile_cuts(model, ids, seconds=1000)
    said = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert len(said) == 1 and "unties" in said[0]  # halves that are made again do not say it again
    assert len(rows) == 5 and sizes.count(2) == sizes.count(8) == 5
    for row in rows:
        assert row.inference.error is not None and row.backprop.error is not None
        assert max(row.inference.error, row.backprop.error) < 0.02, row
