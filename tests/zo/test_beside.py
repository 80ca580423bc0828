"""Several probes in one forward: what they see is what probes at written weights see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from sfl_flower.errors import ConfigError
from sfl_flower.split.parameters.subspace import open_subspace
from sfl_flower.zo import ParameterVector, Probing, loss_scalars, run_key, surrogate_scalars
from sfl_flower.zo.beside import Beside
from sfl_flower.zo.estimator import Target, Together

RUN = run_key("beside")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """Attention and a product of two layers, as transformers have them."""

    def __init__(self, words: int = 11, width: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.words(x)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        mixed: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v))
        return h + mixed


def subspace(trained: str, kind: str = "") -> nn.Module:
    last = Conv1D(3, 36) if kind == "transposed" else nn.Linear(36, 3)
    inner = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=2) if kind == "grouped" else nn.ReLU()
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), inner, nn.ReLU(), nn.Flatten(), last
    )
    open_subspace(net, trained)
    for number, basis in enumerate(net.buffers()):
        basis.copy_(randn(*basis.shape, seed=70 + number) / 2)
    return net


HALVES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), randn(6, 5)),
    "positions": (lambda: nn.Linear(5, 4), randn(6, 2, 3, 5)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding="same"), nn.GroupNorm(2, 6), nn.ReLU(),
            nn.Conv2d(6, 6, (3, 1), stride=2, groups=3), nn.BatchNorm2d(6).eval(), nn.Flatten(),
            nn.Linear(48, 2),
        ),
        randn(5, 4, 5, 7),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 2, dilation=2, bias=False), nn.ReLU()),
        randn(4, 3, 9),
    ),
    "three dimensions": (lambda: nn.Conv3d(1, 2, 2), randn(3, 1, 3, 4, 2)),
    "transformer": (Block, torch.arange(24).reshape(4, 6) % 11),
    "subspace": (lambda: subspace("subspace:2"), randn(5, 2, 6, 6)),
    "core": (lambda: subspace("core:2"), randn(5, 2, 6, 6)),
    "grouped subspace": (lambda: subspace("subspace:2", "grouped"), randn(5, 2, 6, 6)),
    "grouped core": (lambda: subspace("core:2", "grouped"), randn(5, 2, 6, 6)),
    "transposed subspace": (lambda: subspace("subspace:2", "transposed"), randn(5, 2, 6, 6)),
    "transposed core": (lambda: subspace("core:2", "transposed"), randn(5, 2, 6, 6)),
    "one sample": (lambda: nn.Linear(5, 4), randn(1, 5)),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, ParameterVector, Tensor]:
    make, x = HALVES[name]
    half = make()
    vector = ParameterVector(half)
    vector.load(randn(vector.size, seed=3) / 3)
    return half, vector, x


def stacked(half: nn.Module, vector: ParameterVector, x: Tensor, most: int) -> Together:
    beside = Beside.open(half, vector, half, x)
    assert beside is not None
    return Together(beside, half, x, lambda part: part, most)


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("name", HALVES)
def test_scalars_are_those_of_written_weights(name: str, estimator: str) -> None:
    half, vector, x = built(name)
    start = vector.anchor.clone()
    directions = vector.directions(RUN, "rank_one").of_step(1, 0, 0, 5)
    with torch.no_grad():
        z = half(x)
    lam = randn(*z.shape, seed=4)
    probing = Probing(5, "rank_one", 1e-2, estimator)
    written = surrogate_scalars(lambda: half(x), vector, directions, probing, z, lam)
    for most in (2, 5, 8):
        together = stacked(half, vector, x, most)
        found = surrogate_scalars(lambda: half(x), vector, directions, probing, z, lam, together)
        torch.testing.assert_close(found, written, rtol=2e-3, atol=1e-4)
    assert torch.equal(vector.anchor, start)
    with torch.no_grad():
        assert torch.equal(half(x), z)


def test_losses_are_read_probe_by_probe() -> None:
    half, vector, x = built("linear")
    directions = vector.directions(RUN, "rank_one").of_step(1, 0, 0, 4)
    y, probing = torch.arange(6) % 3, Probing(4, "rank_one", 1e-2, stack=4)

    def read(part: Tensor) -> Tensor:
        return functional.cross_entropy(part, y)

    beside = Beside.open(half, vector, half, x)
    assert beside is not None
    written = loss_scalars(lambda: read(half(x)), vector, directions, probing)
    together = Together(beside, half, x, read, 4)
    found = loss_scalars(lambda: read(half(x)), vector, directions, probing, None, together)
    torch.testing.assert_close(found, written, rtol=2e-3, atol=1e-6)


def test_directions_without_factors_have_a_forward_of_their_own() -> None:
    half, vector, x = built("linear")
    signs = vector.directions(RUN, "rademacher").of_step(1, 0, 0, 3)
    factors = vector.directions(RUN, "rank_one").of_step(1, 0, 0, 4)
    directions = [factors[0], signs[0], *factors[1:], signs[1], signs[2]]
    with torch.no_grad():
        z = half(x)
    lam, probing = randn(*z.shape, seed=4), Probing(7, "rank_one", 1e-2)
    together = stacked(half, vector, x, 2)
    target = Target(lambda: half(x), lambda high, low: torch.zeros(1), z, together)
    assert [len(group) for group in target.groups(directions)] == [1, 1, 2, 1, 1, 1]
    written = surrogate_scalars(lambda: half(x), vector, directions, probing, z, lam)
    found = surrogate_scalars(lambda: half(x), vector, directions, probing, z, lam, together)
    torch.testing.assert_close(found, written, rtol=2e-3, atol=1e-4)


def test_no_weight_is_written() -> None:
    half, vector, x = built("linear")
    together = stacked(half, vector, x, 3)
    with together.beside.probes(vector.directions(RUN, "rank_one").of_step(1, 0, 0, 3), 1e-2):
        assert together.run(x.repeat(3, 1)).shape == (18, 3)
    assert vector._work is None
    assert not any(layer._forward_hooks for layer in half.modules())


class Mixing(nn.Module):
    """Knows the other samples of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        return z - z.mean(0)


class Sized(Mixing):
    """Knows the size of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        return z.reshape(6, 4)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    "make",
    [
        Mixing,
        Sized,
        tied,
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)),
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU()),
        lambda: nn.TransformerEncoderLayer(5, 1, 8, 0.0, batch_first=True),
    ],
)
def test_other_modules_are_probed_by_writing_weights(make: Callable[[], nn.Module]) -> None:
    half = make()
    shape = (6, 2, 5) if isinstance(half, nn.TransformerEncoderLayer) else (6, 5)
    assert Beside.open(half, ParameterVector(half), half, randn(*shape)) is None


@pytest.mark.parametrize(("law", "estimator"), [("rademacher", "forward"), ("rank_one", "jvp")])
def test_only_factors_stack(law: str, estimator: str) -> None:
    with pytest.raises(ConfigError, match=r"use direction=rank_one with estimator=forward"):
        Probing(4, law, estimator=estimator, stack=2)
