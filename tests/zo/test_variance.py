"""The variance of an estimate along own and along shared directions."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfl_flower.zo import SHARED_STREAM, Directions, client_stream, run_key

ROOT = Path(__file__).resolve().parents[2]
SIZE, CLIENTS, PROBES = 6, 3, 2
COMMON = torch.tensor([3.0, -1.0, 2.0, 0.5, 1.0, -2.0], dtype=torch.float64)
APART = torch.tensor([[1.0, -2.0, 1.0], [2.0, 1.0, -3.0]], dtype=torch.float64)
CASES: dict[str, tuple[Tensor, float]] = {
    # Gradients of the clients, and how many times lower the variance of own directions is.
    "equal": (COMMON.expand(CLIENTS, SIZE), 3.0),
    "noise": (4.0 * torch.eye(SIZE, dtype=torch.float64)[:CLIENTS], 1.0),  # orthogonal ones
    "cancelling": (COMMON * torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64), 1 / 9),
}


def formulas(gradients: Tensor, probes: int) -> tuple[float, float]:
    """Return the variances for own and for shared directions of ±1: d - 1 in place of d."""
    d, count = gradients.shape[1] - 1, len(gradients)
    own = d * float(gradients.square().sum(1).mean()) / (count * probes)
    return own, d * float(gradients.mean(0).square().sum()) / probes


@pytest.mark.parametrize("gradients", [APART, APART[:1].expand(2, 3), APART * 0 + 1])
def test_d6_both_variances_by_every_direction_there_is(gradients: Tensor) -> None:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    mean = gradients.mean(0)
    pairs = itertools.product(signs, signs)  # of two clients, one probe each
    own = [(gradients[0] @ u * u + gradients[1] @ w * w) / 2 - mean for u, w in pairs]
    shared = [mean @ u * u - mean for u in signs]
    for errors, formula in zip((own, shared), formulas(gradients, 1), strict=True):
        assert float(torch.stack(errors).sum(0).abs().max()) < 1e-12  # without bias
        variance = float(torch.stack(errors).square().sum(1).mean())
        assert variance == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_d6_own_directions_win_where_gradients_agree_and_lose_where_they_cancel(case: str) -> None:
    gradients, lower = CASES[case]
    directions = Directions(run_key("variance"), "rademacher", [(SIZE,)])
    found, rounds = {"own": 0.0, "shared": 0.0}, 1500
    for round, name in itertools.product(range(rounds), found):
        estimate = torch.zeros(SIZE, dtype=torch.float64)
        for client, gradient in enumerate(gradients):
            stream = SHARED_STREAM if name == "shared" else client_stream(client)
            for u in directions.of_step(round, 0, stream, PROBES):
                values = u.values().double()
                estimate += (gradient @ values) * values / (PROBES * CLIENTS)
        found[name] += float((estimate - gradients.mean(0)).square().sum()) / rounds
    own, shared = formulas(gradients, PROBES)
    assert found["own"] == pytest.approx(own, rel=0.15)
    assert found["shared"] == pytest.approx(shared, rel=0.15)
    assert shared / own == pytest.approx(lower, rel=1e-9)


@pytest.mark.parametrize("page", ["design", "methods"])
def test_d6_the_pages_say_both_variances(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert "d·mean‖g_k‖²/(K·P)" in text and "d·‖ḡ‖²/P" in text
    assert "mean‖g_k‖² < K·‖ḡ‖²" in text
