from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.errors import ConfigError
from sfl_flower.zo import OPTIMIZERS, OptimizerSpec
from sfl_flower.zo.rules import make_step
from sfl_flower.zo.sums import fixed_sum

TORCHS = OPTIMIZERS[:4]


def run(spec: OptimizerSpec, rates: list[float], gradients: np.ndarray, block: int) -> dict:
    """Apply steps block by block, as a replica does."""
    size = gradients.shape[1]
    theta = np.linspace(-1, 1, size).astype(np.float32)
    slots = {name: np.zeros(size, np.float32) for name in spec.slots}
    powers = (1.0, 1.0)
    for lr, gradient in zip(rates, gradients, strict=True):
        powers = (powers[0] * spec.beta1, powers[1] * spec.beta2)
        step = make_step(spec, lr, powers)
        step.begin(slots)
        (fold,) = step.coefficients(np.ones(1, np.float32))
        for low in range(0, size, block):
            here = slice(low, low + block)
            g = gradient[here] * np.float32(fold)
            parts = {name: slot[here] for name, slot in slots.items()}
            step.apply(theta[here], parts, g, np.empty_like(g))
    return {"theta": theta, **slots}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", TORCHS)
def test_same_rule_as_torch(name: str, decay: float) -> None:
    gradients = np.random.default_rng(0).standard_normal((12, 100)).astype(np.float32)
    rates = [0.05 * 0.9**t for t in range(12)]
    spec = OptimizerSpec(name, momentum=0.8, beta1=0.85, beta2=0.95, weight_decay=decay)
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 100))
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": decay}
    optimizer: torch.optim.Optimizer
    if name in ("sgd", "momentum"):
        momentum = 0.8 if name == "momentum" else 0.0
        optimizer = torch.optim.SGD([parameter], momentum=momentum, **options)
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = kind([parameter], betas=(0.85, 0.95), eps=1e-8, **options)
    for lr, gradient in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    ours = torch.from_numpy(run(spec, rates, gradients, 100)["theta"])
    torch.testing.assert_close(ours, parameter.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits_do_not_depend_on_the_block(name: str) -> None:
    gradients = np.random.default_rng(1).standard_normal((5, 1000)).astype(np.float32)
    spec = OptimizerSpec(name, weight_decay=0.01)
    whole = run(spec, [0.1] * 5, gradients, 1000)
    for block in (1, 7, 64, 999):
        parts = run(spec, [0.1] * 5, gradients, block)
        assert all(parts[key].tobytes() == whole[key].tobytes() for key in whole)


def test_two_momentum_steps_by_hand() -> None:
    gradients = np.full((2, 1), 1.0, np.float32)
    spec = OptimizerSpec("momentum", momentum=0.5)
    result = run(spec, [0.25, 0.5], gradients, 1)
    assert result["momentum"].tolist() == [1.5]
    assert result["theta"].tolist() == [-1.0 - 0.25 * 1.0 - 0.5 * 1.5]


def test_sgd_folds_its_rate_into_the_coefficients() -> None:
    step = make_step(OptimizerSpec("sgd"), 0.1, (1.0, 1.0))
    assert step.coefficients(np.array([3.0], np.float32)) == [0.1 * 3.0]
    step = make_step(OptimizerSpec("momentum"), 0.1, (1.0, 1.0))
    assert step.coefficients(np.array([3.0], np.float32)) == [3.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_spec_survives_its_encoding(name: str) -> None:
    spec = OptimizerSpec(name, 0.7, 0.8, 0.99, 1e-6, 0.02)
    assert len(spec.encode()) == 41
    assert OptimizerSpec.decode(spec.encode()) == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "lion"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("beta1", 1.0),
        ("beta2", float("nan")),
        ("eps", 0.0),
        ("eps", float("inf")),
        ("weight_decay", -1e-9),
        ("weight_decay", float("inf")),
    ],
)
def test_values_out_of_range_are_named_with_their_range(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"(legal|use one of)"):
        OptimizerSpec(**{field: value})  # type: ignore[arg-type]


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ConfigError, match="tag 9"):
        OptimizerSpec.decode(b"\x09" + OptimizerSpec().encode()[1:])


def test_tags_are_appended() -> None:
    assert OPTIMIZERS == ("sgd", "momentum", "adam", "adamw", "radazo", "hiso")


def plain(spec: OptimizerSpec, rates: list[float], gradients: np.ndarray) -> np.ndarray:
    """Return the parameters by the formulas of the documentation, in float64."""
    theta = np.linspace(-1, 1, gradients.shape[1])
    m, v, h = np.zeros((3, gradients.shape[1]))
    b1, b2 = spec.beta1, spec.beta2
    for t, (lr, given) in enumerate(zip(rates, gradients.astype(np.float64), strict=True), 1):
        g = given + spec.weight_decay * theta
        if spec.name == "radazo":
            m = b1 * m + (1 - b1) * g
            unbiased = m / (1 - b1**t)
            v = b2 * v + (1 - b2) * unbiased**2
            theta = theta - lr * unbiased / (np.sqrt(v / (1 - b2**t)) + spec.eps)
        else:
            share = h / h.mean() if t > 1 else np.ones_like(h)
            theta = theta - lr * g / (b2**t + (1 - b2**t) * share)
            h = b2 * h + (1 - b2) * g**2
    return theta


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["radazo", "hiso"])
def test_same_rule_as_the_formula(name: str, decay: float) -> None:
    gradients = np.random.default_rng(0).standard_normal((12, 100)).astype(np.float32)
    rates = [0.05 * 0.9**t for t in range(12)]
    spec = OptimizerSpec(name, beta1=0.85, beta2=0.9, weight_decay=decay)
    found = run(spec, rates, gradients, 100)["theta"]
    np.testing.assert_allclose(found, plain(spec, rates, gradients), rtol=2e-5, atol=2e-6)


def test_two_radazo_steps_by_hand() -> None:
    gradients = np.array([[4.0], [0.0]], np.float32)
    result = run(
        OptimizerSpec("radazo", beta1=0.5, beta2=0.5, eps=1e-30), [0.25, 3.0], gradients, 1
    )
    # m 2, 1; corrected 4, 4/3; v 8, 4 + 8/9; corrected 16, 44/9 / 0.75: the first step is the rate.
    assert result["m"].tolist() == [1.0]
    assert result["v"][0] == pytest.approx(44 / 9, rel=1e-6)
    second = 3.0 * (4 / 3) / (44 / 9 / 0.75) ** 0.5
    assert result["theta"][0] == pytest.approx(-1.0 - 0.25 - second, rel=1e-6)


def test_two_hiso_steps_by_hand() -> None:
    gradients = np.array([[1.0, 3.0], [1.0, 1.0]], np.float32)
    result = run(OptimizerSpec("hiso", beta2=0.5), [1.0, 1.0], gradients, 1)
    # First plain SGD: -1 - 1, 1 - 3. Then h = (0.5, 4.5), mean 2.5; D = 0.25 + 0.75 h / 2.5.
    assert result["h"].tolist() == [0.75, 2.75]
    expected = [-2.0 - 1 / 0.4, -2.0 - 1 / 1.6]
    np.testing.assert_allclose(result["theta"], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 65536, 65537, 200_001])
def test_a_sum_has_one_order(size: int) -> None:
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)

    def fold(part: np.ndarray) -> float:
        numbers = [float(number) for number in part] + [0.0] * (65536 - len(part))
        while len(numbers) > 1:
            half = len(numbers) // 2
            numbers = [a + b for a, b in zip(numbers[:half], numbers[half:], strict=True)]
        return numbers[0]

    blocks = [values[low : low + 65536].astype(np.float64) for low in range(0, size, 65536)]
    assert fixed_sum(values) == sum(fold(block) for block in blocks)
    assert fixed_sum(values, squared=True) == sum(fold(block**2) for block in blocks)
