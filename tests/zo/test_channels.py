"""Coefficients of channels: by hand, against numpy, and as the exact gradient that they can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError, JournalError, WireError
from sfl_flower.zo import (
    Directions,
    Entry,
    JournalHeader,
    Key,
    OptimizerSpec,
    ParameterVector,
    Probing,
    Replica,
    params_digest,
    run_key,
    surrogate_scalars,
    totals,
)
from sfl_flower.zo.channels import Channels, clip_channels

RUN = run_key("channels")
SHAPES = ((2, 3), (2,), (3,))
APART = (True, True, False)


def header(theta: torch.Tensor, apart: tuple[bool, ...] = APART) -> JournalHeader:
    return JournalHeader(RUN, bytes(32), params_digest(theta), apart=apart)


def test_rows_take_their_channel_and_the_rest_the_whole() -> None:
    channels = Channels(SHAPES, APART)
    assert (channels.count, channels.parts) == (2, 3)
    assert channels.of_element.tolist() == [1, 1, 1, 2, 2, 2, 1, 2, 0, 0, 0]
    assert channels.noise_size == 3 + 1 + 3


@pytest.mark.parametrize("apart", [(False, False, False), (True, False, True)])
def test_channels_need_one_number_of_rows(apart: tuple[bool, ...]) -> None:
    with pytest.raises(ConfigError, match="it must be one number"):
        Channels(SHAPES, apart)
    with pytest.raises(ConfigError, match="name all of them"):
        Directions(RUN, "rademacher", SHAPES, (True,))


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
@given(seed=st.integers(0, 2**16), probes=st.integers(1, 5))
def test_a_step_is_the_sum_over_probes_of_each_part(law: str, seed: int, probes: int) -> None:
    theta = torch.zeros(11)
    start = JournalHeader(RUN, bytes(32), params_digest(theta), law, apart=APART)
    replica = Replica.initial(theta, start, SHAPES)
    values = np.random.default_rng(seed).standard_normal((1, 1, 3 * probes)).astype(np.float32)
    replica.apply(Entry(0, 0.5, (7,), 1, 3 * probes, values))
    directions, index = Directions(RUN, law, SHAPES), Channels(SHAPES, APART).of_element
    expected = np.zeros(11)
    for probe in range(probes):
        u = directions.of(Key(0, 0, 7, probe)).values().numpy()
        expected -= 0.5 * values[0, 0, 3 * probe : 3 * probe + 3][index] * u
    np.testing.assert_allclose(replica.theta.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_blocks_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfl_flower.zo import accumulate

    shapes, rng = ((40, 7), (40,), (13,)), np.random.default_rng(3)
    theta = torch.from_numpy(rng.standard_normal(333).astype(np.float32))
    values = rng.standard_normal((2, 1, 2 * 41)).astype(np.float32)
    entry = Entry(4, 0.1, (1, 5), 1, 2 * 41, values)
    found = []
    for block in (8, 64, 131072):
        monkeypatch.setattr(accumulate, "SUM_BLOCK", block)
        replica = Replica.initial(theta, header(theta), shapes)
        replica.apply(entry)
        found.append(replica.theta)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_one_probe_tells_the_gradient_of_a_bias_exactly() -> None:
    """A row of one element has no other direction among its own: v_c u_c is its derivative."""
    with seeded_torch("layer", 0):
        layer, x, lam = nn.Linear(5, 4), torch.randn(6, 5), torch.randn(6, 4)
    layer.weight.requires_grad_(False)
    vector = ParameterVector(layer)
    (u,) = vector.directions(RUN, "rademacher").of_step(0, 0, 1, 1)
    probing = Probing(1, estimator="jvp", channel=1)
    scalars = surrogate_scalars(lambda: layer(x), vector, [u], probing, layer(x).detach(), lam)
    assert scalars.shape == (5,)
    torch.testing.assert_close(scalars[1:] * u.values(), lam.sum(0))
    torch.testing.assert_close(scalars[0], (lam.sum(0) * u.values()).sum())


@pytest.mark.parametrize("estimator", ["forward", "central", "jvp"])
def test_channels_add_up_to_the_whole(estimator: str) -> None:
    with seeded_torch("half", 1):
        half, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(5, 3)
        lam = torch.randn(5, 4)
    vector, z = ParameterVector(half), half(x).detach()
    us = vector.directions(RUN, "rademacher").of_step(0, 0, 1, 3)

    def scalars(channel: int) -> torch.Tensor:
        probing = Probing(3, mu=1e-2, estimator=estimator, channel=channel)
        return surrogate_scalars(lambda: half(x), vector, us, probing, z, lam).reshape(3, -1)

    torch.testing.assert_close(scalars(1)[:, 0], scalars(0)[:, 0])
    torch.testing.assert_close(scalars(1)[:, 1:].sum(1), scalars(0)[:, 0], rtol=1e-4, atol=1e-6)


def test_totals_by_hand() -> None:
    products = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    assert totals(products, 0).tolist() == [36.0]
    assert totals(products, 1).tolist() == [36.0, 14.0, 22.0]
    assert totals(products, 2).tolist() == [36.0, 16.0, 20.0]


def test_clipping_bounds_channels_and_the_rest_by_themselves() -> None:
    """Two probes: the whole has (98 + 2) / 2 = 50 = 7.07², channels (9 + 16 + 9 + 16) / 2 = 5²."""
    scalars = np.array([[98**0.5, 3.0, 4.0], [-(2**0.5), 3.0, -4.0]])
    found = clip_channels(scalars, 1.0, 2.5)
    np.testing.assert_allclose(found[:, 1:], scalars[:, 1:] / 2)
    np.testing.assert_allclose(found[:, 0], scalars[:, 0] * 2.5 / 50**0.5)
    found = clip_channels(scalars, 1.0, 5.0)
    np.testing.assert_array_equal(found[:, 1:], scalars[:, 1:])
    np.testing.assert_allclose(found[:, 0], scalars[:, 0] * 5 / 50**0.5)
    np.testing.assert_array_equal(clip_channels(scalars, 1.0, 0.0), scalars)
    assert not clip_channels(np.zeros((1, 3)), 1.0, 1.0).any()


def test_a_header_names_its_tensors() -> None:
    theta = torch.zeros(11)
    data = header(theta).encode()
    assert JournalHeader.decode(data) == header(theta)
    assert len(data) == 129 + 4 + 1
    assert data[4] == 3
    assert data[-5:] == b"\x03\x00\x00\x00\x03"
    assert header(theta).digest() != header(theta, ()).digest()
    assert header(theta, ()).encode()[4] == 1


@pytest.mark.parametrize(
    "bad",
    [b"\x03\x00\x00\x00\x00", b"\x03\x00\x00\x00\x0b", b"\x03\x00\x00\x00", b"\x00\x00\x00\x00"],
    ids=["names none", "beyond the last", "cut short", "of no tensor"],
)
def test_a_header_that_names_nothing_is_refused(bad: bytes) -> None:
    data = header(torch.zeros(11)).encode()[:129] + bad
    with pytest.raises(WireError):
        JournalHeader.decode(data)


def test_channels_and_a_cone_exclude_each_other() -> None:
    spec = OptimizerSpec("momentum", cone=0.5)
    with pytest.raises(JournalError, match="no cone"):
        JournalHeader(RUN, bytes(32), bytes(32), "rademacher", spec, (True,))


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    theta = torch.zeros(11)
    replica = Replica.initial(theta, header(theta), SHAPES)
    for probes in (1, 5):
        with pytest.raises(JournalError, match="no multiple of the 3 of a direction"):
            replica.apply(Entry(0, 0.1, (7,), 1, probes, np.zeros((1, 1, probes), np.float32)))
    replica.apply(Entry(0, 0.1, (7,), 2, 3, np.ones((1, 2, 3), np.float32)))
    with pytest.raises(JournalError, match="header does not fit the parameters"):
        Replica.initial(theta, header(theta, (True, False)), SHAPES)
