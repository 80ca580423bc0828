"""What a profile says of cuts: numbers by hand, and predicted peaks beside measured ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfl_flower.errors import CutError
from sfl_flower.profiling.cuts import WHOLE, profile_cuts
from sfl_flower.profiling.peaks import Peak
from sfl_flower.split import freeze_batch_norm


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def test_numbers_by_hand() -> None:
    model = perceptron()
    model[2].weight.requires_grad_(False)
    rows = {row.at: row for row in profile_cuts(model, torch.randn(16, 6))}
    assert list(rows) == ["0", "1", "2", "3", WHOLE]
    two = rows["2"]
    assert (two.parameters, two.trainable) == (6 * 5 + 5 + 5 * 4 + 4, 35 + 4)
    assert two.state_bytes == 4 * 59 and two.travelling_bytes == 4 * 39
    assert two.flops == 2 * (6 * 5 + 5 * 4)  # a multiplication and an addition each
    assert (two.smashed_shape, two.smashed_bytes) == ((4,), 16)
    # The hidden layer before and after its tanh are alive together, z comes when one is gone.
    assert two.inference.bytes == 4 * 16 * (5 + 5)
    assert rows["0"].inference.bytes == 4 * 16 * 5
    assert two.forward_seconds > 0 and two.backprop_seconds > 0


def test_a_probe_runs_what_it_moves() -> None:
    rows = {row.at: row for row in profile_cuts(perceptron(), torch.randn(16, 6), trained="2.*")}
    assert rows["1"].trainable == 0 and rows["1"].rerun is None and rows[WHOLE].rerun is None
    probe = rows["2"].rerun
    assert probe is not None
    assert (probe.flops, probe.crossing_bytes) == (2 * 5 * 4, 4 * 5)
    # The tanh's input is gone when its output crosses, which is alive while z comes.
    assert probe.peak.bytes == 4 * 16 * (5 + 5)
    two = profile_cuts(perceptron(), torch.randn(16, 6), ["3"], trained="2.*")[0]
    assert two.inference.bytes == 4 * 16 * (5 + 5) and two.rerun is not None
    assert two.rerun.peak.bytes == 4 * 16 * (5 + 4 + 4)  # what crosses stays beside both


def test_buffers_travel_and_are_counted() -> None:
    row = profile_cuts(convolutions(), torch.randn(8, 3, 8, 8), ["1"])[0]
    assert row.parameters == 3 * 8 * 9 + 8 + 16
    assert row.travelling_bytes == 4 * (row.parameters + 16) + 8 == row.state_bytes


def test_frozen_batch_norm_does_not_travel() -> None:
    model = convolutions()
    freeze_batch_norm(model[1])
    row = profile_cuts(model, torch.randn(8, 3, 8, 8), ["1"])[0]
    assert row.travelling_bytes == 4 * (3 * 8 * 9 + 8) < row.state_bytes


@pytest.mark.parametrize("build", [perceptron, convolutions])
def test_predicted_peaks_are_the_measured_ones(build: object) -> None:
    assert callable(build)
    x = torch.randn(64, 6) if build is perceptron else torch.randn(64, 3, 16, 16)
    for row in profile_cuts(build(), x):
        for peak in (row.inference, row.backprop):
            assert peak.measured is not None and peak.error is not None
            assert peak.error <= 0.15, (row.at, peak)
    rows = profile_cuts(build(), x, seconds=0)
    assert all(r.inference.measured is None and r.inference.error is None for r in rows)


def test_a_peak_that_moves_with_the_batch_is_predicted() -> None:
    """At small batches the wide layer's gradient of weights is the peak, at large ones not."""
    model = nn.Sequential(nn.Embedding(5000, 16), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
    x = torch.randint(0, 5000, (64, 32))
    small, large = (profile_cuts(model, part, ["2"])[0].backprop.bytes for part in (x[:8], x))
    assert small < 2 * 4 * 5000 * 16 < large
    row = profile_cuts(model, x, ["2"])[0]
    assert row.backprop.error is not None and row.backprop.error <= 0.15


def test_fewer_trained_parameters_are_counted_and_need_less() -> None:
    x = torch.randn(16, 3, 8, 8)
    whole = profile_cuts(convolutions(), x, ["0", "5"])
    norms = profile_cuts(convolutions(), x, ["0", "5"], trained="norm")
    assert [row.trainable for row in norms] == [0, 2 * (8 + 16), whole[2].trainable]
    assert norms[1].travelling_bytes == whole[1].travelling_bytes - 4 * (216 + 8 + 1152 + 16)
    assert norms[1].inference == whole[1].inference
    assert norms[0].backprop.bytes < whole[0].backprop.bytes


def test_a_small_batch_is_measured_at_once() -> None:
    row = profile_cuts(perceptron(), torch.randn(1, 6), ["0"], seconds=0)[0]
    assert row.inference == Peak(20, 20) and row.inference.error == 0


def test_the_model_is_left_as_it_is() -> None:
    model = convolutions()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile_cuts(model, torch.randn(8, 3, 8, 8), ["3"])
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_profiled_is_said() -> None:
    with pytest.raises(CutError, match=r"no layer named 'nine'|has no layer"):
        profile_cuts(perceptron(), torch.randn(4, 6), ["nine"])
    with pytest.raises(CutError, match=r"does not run on a batch of shape \[4, 7\]"):
        profile_cuts(perceptron(), torch.randn(4, 7))
    with pytest.raises(CutError, match="no samples"):
        profile_cuts(perceptron(), torch.randn(0, 6))
    with pytest.raises(CutError, match="no legal cut"):
        profile_cuts(nn.Sequential(nn.Linear(6, 2)), torch.randn(4, 6))
