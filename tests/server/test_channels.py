"""The trials that find what acts on one channel alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError
from sfl_flower.server.channels import (
    Apart,
    check_channels,
    check_size,
    told_apart,
    walk_signs,
)

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


def test_a_layer_norm_mixes_channels_and_its_own_scale_does_not() -> None:
    with seeded_torch("half", 0):
        half = nn.Sequential(nn.Linear(5, 768), nn.LayerNorm(768))
    found = told_apart("channel", half, torch.randn(8, 3, 5), 0)
    assert found == Apart(2, (False, False, True, True))


def test_where_nothing_is_told_apart_the_reason_is_said() -> None:
    half = convolutions().eval()
    half[2].requires_grad_(False)
    half[3].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"no trained parameter .* alone .*0\.weight 0\.0000\b"):
        told_apart("channel", half, torch.randn(4, 1, 9, 9), 0)


def test_smashed_data_without_channels_have_none() -> None:
    half = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    with pytest.raises(ConfigError, match=r"shape \[4\] alone"):
        told_apart("channel", half, torch.randn(4, 3), 0)


def test_more_scalars_than_an_entry_holds_are_refused() -> None:
    """86 clients x 16 probes x (1 + 768) are 1 058 144, above 2**20; 85 are 1 045 840."""
    settings = {"probes": 16, "minibatches": 1, "directions": "own"}
    apart = Apart(1, (True,))
    check_size(apart, ((768,),), settings, 85)
    check_size(apart, ((768,),), {**settings, "directions": "shared"}, 86)
    with pytest.raises(ConfigError, match=r"An update has 1058144 scalars .* or scalars=batch"):
        check_size(apart, ((768,),), settings, 86)


@pytest.mark.parametrize("other", [{"guide": "public"}, {"cone": 0.5}, {"scale": "spread"}])
def test_options_of_one_scalar_a_probe_are_refused(other: dict[str, object]) -> None:
    check_channels("batch", {**PLAIN, **other})
    check_channels("channel", PLAIN)
    with pytest.raises(ConfigError, match=f"scalars=channel with {next(iter(other))}="):
        check_channels("channel", {**PLAIN, **other})


def test_a_walk_of_shared_directions_has_one_sign_for_all_clients() -> None:
    own, shared = (walk_signs(0, 3, (4, 2, 8), each) for each in (False, True))
    assert (own.shape, shared.shape) == ((4, 2, 8), (2, 8))
    assert set(own.reshape(-1)) == set(shared.reshape(-1)) == {-1.0, 1.0}
    assert abs(own.sum()) < 64
    assert not (own == walk_signs(0, 4, (4, 2, 8), False)).all()
