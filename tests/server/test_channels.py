"""The trials that find what acts on one channel alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError
from sfl_flower.server.channels import Apart, check_channels, told_apart

PLAIN = {"guide": "none", "cone": 0.0, "scale": "none"}


def convolutions() -> nn.Sequential:
    with seeded_torch("half", 0):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        )


def test_the_last_convolution_and_its_norm_are_found() -> None:
    half, x = convolutions(), torch.randn(4, 1, 9, 9)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    # 0.bias, 0.weight, 2.bias, 2.weight, 3.bias, 3.weight; in train mode a norm takes bias 2 out
    assert told_apart("channel", half.eval(), x, 0) == Apart(
        1, (False, False, True, True, True, True)
    )
    assert told_apart("batch", half, x, 0) == Apart()
    for name, value in half.state_dict().items():
        assert torch.equal(value, before[name])


def test_as_many_rows_as_channels_are_not_enough() -> None:
    with seeded_torch("half", 0):
        half = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    assert told_apart("channel", half, torch.randn(8, 5), 0).tensors == (False, False, True, True)


def test_a_layer_norm_over_many_channels_couples_them_little() -> None:
    with seeded_torch("half", 0):
        half = nn.Sequential(nn.Linear(5, 384), nn.LayerNorm(384))
    found = told_apart("channel", half, torch.randn(8, 3, 5), 0)
    assert found == Apart(2, (True, True, True, True))
    few = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6))
    assert told_apart("channel", few, torch.randn(8, 5), 0).tensors == (False, False, True, True)


def test_where_nothing_is_told_apart_the_reason_is_said() -> None:
    half = convolutions().eval()
    half[2].requires_grad_(False)
    half[3].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"no trained parameter .* alone .*0\.weight 0\.00"):
        told_apart("channel", half, torch.randn(4, 1, 9, 9), 0)


@pytest.mark.parametrize("other", [{"guide": "public"}, {"cone": 0.5}, {"scale": "spread"}])
def test_options_of_one_scalar_a_probe_are_refused(other: dict[str, object]) -> None:
    check_channels("batch", {**PLAIN, **other})
    check_channels("channel", PLAIN)
    with pytest.raises(ConfigError, match=f"scalars=channel with {next(iter(other))}="):
        check_channels("channel", {**PLAIN, **other})
