"""The distance correlation: numbers worked out by hand, and what it is known to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sfl_flower.privacy.dependence import Dependence


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def dcor(x: torch.Tensor, z: torch.Tensor) -> float:
    return float(Dependence(x).dcor(z))


def test_three_samples_worked_out_by_hand() -> None:
    """x = 0, 1, 3 and z = 0, 0, 1.

    Centred, 3 A = [-4 0 4; 0 -2 2; 4 2 -6] and 9 B = [-2 -2 4; -2 -2 4; 4 4 -8]: the sums of
    products are ΣAB = 108/27 = 4, ΣAA = 96/9 and ΣBB = 144/81.
    """
    x, z = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    wanted = (4 / ((96 / 9) * (144 / 81)) ** 0.5) ** 0.5
    assert dcor(x, z) == pytest.approx(wanted, rel=1e-12) == pytest.approx(0.9584146563694, 1e-12)


def test_it_is_1_where_nothing_is_lost_and_does_not_know_scale_place_or_order() -> None:
    x, z = draw(12, 2, 3), draw(12, 5, seed=1)
    turn, _ = torch.linalg.qr(draw(6, 6, seed=2))
    assert dcor(x, 3 * x.reshape(12, 6) @ turn - 7) == pytest.approx(1, rel=1e-6)
    assert dcor(x, z) == pytest.approx(dcor(z, x), rel=1e-12)
    assert dcor(x, z) == pytest.approx(dcor(5 * x + 1e3, 0.01 * z), rel=1e-4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert dcor(x, z) == pytest.approx(dcor(x[order], z[order]), rel=1e-12)
    assert 0 < dcor(x, z) < 1


def test_it_falls_to_0_with_the_samples_where_nothing_is_left() -> None:
    """Of few samples of many numbers it is near 1 whatever they are."""
    assert dcor(draw(2000, 1), draw(2000, 1, seed=1)) < 0.06
    assert dcor(draw(2000, 1), draw(2000, 1) ** 2) > 0.4  # no correlation, and all but a sign
    assert dcor(draw(32, 784), draw(32, 800, seed=1)) > 0.99


def test_samples_that_tell_nothing_give_0_and_no_derivative_is_lost() -> None:
    """Constant smashed data, one sample, two that are the same."""
    x = draw(4, 3)
    assert dcor(x, torch.ones(4, 2)) == dcor(torch.ones(4, 3), x) == dcor(x[:1], x[:1]) == 0
    z = draw(4, 2, seed=1)
    z[1] = z[0]
    for given in (z, torch.ones(4, 2)):
        found: Any = torch.func.jvp(Dependence(x).dcor, (given,), (x[:, :2],))
        assert torch.isfinite(torch.stack(found)).all()


def test_derivatives_forward_and_back_are_that_of_a_difference() -> None:
    x, z, along = draw(6, 4).double(), draw(6, 3, seed=1).double(), draw(6, 3, seed=2).double()
    own, step = Dependence(x), 1e-6
    found = torch.func.jvp(own.dcor, (z,), (along,))[1]
    back = (torch.func.grad(own.dcor)(z) * along).sum()
    by_difference = (own.dcor(z + step * along) - own.dcor(z - step * along)) / (2 * step)
    assert float(found) == pytest.approx(float(by_difference), rel=1e-6)
    assert float(back) == pytest.approx(float(found), rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_taken_for_what_tells_nothing(bad: float) -> None:
    x, z = draw(6, 4), draw(6, 3, seed=1)
    z[2, 1] = bad
    assert np.isnan(dcor(x, z)) and np.isnan(dcor(z, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_copied_once_and_stay_as_they_are(dtype: torch.dtype) -> None:
    """Of 5 samples of 1000 numbers one float64 tensor of that size is made and held."""

    held: list[torch.Tensor] = []  # so that no place is used twice

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), named: Any = None) -> Any:
            found = func(*args, **(named or {}))
            held.extend(t for t in (found,) if isinstance(t, torch.Tensor) and t.numel() == 5000)
            return found

    x, z = draw(5, 7), draw(5, 1000).to(dtype)
    own, before = Dependence(x), z.clone()
    with Made():  # type: ignore[no-untyped-call]
        own.dcor(z)
    places = {made.untyped_storage().data_ptr() for made in held}
    assert len(places - {z.untyped_storage().data_ptr()}) == 1
    assert torch.equal(z, before)
