"""Forms of guides, on matrices whose singular values are seen at a glance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.server.guide import GuideMaker
from sfl_flower.server.guide_forms import FORMS, orthogonal
from sfl_flower.zo import Guide, ParameterVector


def flat(*tensors: Tensor) -> Tensor:
    return torch.cat([each.reshape(-1) for each in tensors])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[3.0, 0.0], [0.0, -4.0]], [[1.0, 0.0], [0.0, -1.0]]),
        ([[0.0, 5.0, 0.0]], [[0.0, 1.0, 0.0]]),
        ([[2.0], [0.0], [0.0], [0.0]], [[2.0], [0.0], [0.0], [0.0]]),  # √(4/1) times 1
        ([3.0, 4.0], [0.6, 0.8]),
        ([[1.0, 0.0], [0.0, 1e-6]], [[1.0, 0.0], [0.0, 1e-3]]),  # below a thousandth of the norm
        ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_matrices_by_hand(given: list[object], expected: list[object]) -> None:
    q = torch.tensor(given)
    found = orthogonal(q.reshape(-1), (tuple(q.shape),))
    torch.testing.assert_close(found.reshape(q.shape), torch.tensor(expected), rtol=1e-5, atol=0)


def test_each_tensor_has_its_own_and_a_kernel_is_the_matrix_of_its_rows() -> None:
    random = torch.Generator().manual_seed(0)
    kernel, bias, dense = (
        torch.randn(shape, generator=random) for shape in ((4, 3, 2, 2), (4,), (9, 5))
    )
    shapes = tuple(tuple(each.shape) for each in (kernel, bias, dense))
    found = orthogonal(flat(1e3 * kernel, 1e-3 * bias, dense), shapes)
    parts = found.split([48, 4, 45])
    assert torch.linalg.svdvals(parts[0].reshape(4, 12)).sub(1).abs().max() < 1e-4
    torch.testing.assert_close(parts[1], bias / bias.norm())
    level = torch.linalg.svdvals(parts[2].reshape(9, 5)) / (9 / 5) ** 0.5
    assert level.sub(1).abs().max() < 1e-4
    for part, columns in ((parts[0], 12), (parts[2], 5)):
        assert float(part.square().mean()) == pytest.approx(1 / columns, rel=1e-4)
    turned = torch.linalg.svd(dense, full_matrices=False)
    torch.testing.assert_close(
        parts[2].reshape(9, 5), turned.U @ turned.Vh * (9 / 5) ** 0.5, rtol=1e-3, atol=1e-4
    )


def test_the_gradient_stays_as_it_is() -> None:
    q = torch.arange(6.0)
    assert FORMS["gradient"](q, ((2, 3),)) is q


def test_a_guide_takes_the_form_that_it_was_asked_for() -> None:
    half = nn.Linear(3, 2, bias=False)
    vector, x = ParameterVector(half), torch.eye(3)
    q = torch.tensor([9.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    makers = {form: GuideMaker(half, vector, x, form=form) for form in FORMS}
    level = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).numpy()
    assert makers["gradient"].towards(q) == Guide.towards(q.numpy(), vector.shapes)
    assert makers["orthogonal"].towards(q) == Guide.towards(level, vector.shapes)
    assert makers["orthogonal"].towards(torch.zeros(6)) is None
    assert makers["orthogonal"].towards(q * np.nan) is None
