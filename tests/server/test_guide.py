"""The guide of a round: whose gradient it is, where it comes from, and what it leaves alone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.data import seeded_torch
from sfl_flower.errors import ConfigError
from sfl_flower.server.guide import GuideMaker, guide_maker
from sfl_flower.task import Samples, SplitTask
from sfl_flower.zo import Guide, ParameterVector
from tests import tiny


def convolutions() -> nn.Module:
    with seeded_torch("guide test"):
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3, bias=False), nn.Tanh()
        )


def texts() -> nn.Module:
    with seeded_torch("guide test"):
        return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.Tanh())


def vectors() -> nn.Module:
    with seeded_torch("guide test"):
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh())


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(5))


CASES: dict[str, tuple[Any, Tensor]] = {
    "images": (convolutions, draw(5, 1, 7, 6)),
    "texts": (texts, tokens(5, 3)),
    "vectors": (vectors, draw(5, 6)),
}


def exact(half: nn.Module, vector: ParameterVector, x: Tensor, lam: Tensor) -> np.ndarray:
    parts = torch.autograd.grad(half(x), vector.parameters, lam)
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


@pytest.mark.parametrize("case", CASES)
def test_where_the_public_inputs_are_the_clients_own_it_is_their_gradient(case: str) -> None:
    """Every position finds itself, so q = Σ w J(x)ᵀλ to rounding."""
    build, x = CASES[case]
    half = build()
    vector = ParameterVector(half)
    z = half(x).detach()
    lam = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    q = exact(half, vector, x[:2], lam[:2]) + 3.0 * exact(half, vector, x[2:], lam[2:])
    expected = Guide.towards(q.astype(np.float32), vector.shapes)
    answers = [(z[:2].numpy(), lam[:2].numpy(), 1.0), (z[2:].numpy(), lam[2:].numpy(), 3.0)]
    found = GuideMaker(half, vector, x).guide(0, answers)
    assert found is not None and expected is not None
    assert found.signs == expected.signs
    assert np.allclose(found.factors, expected.factors, rtol=1e-4)


def test_lambda_goes_to_the_nearest_position_by_hand() -> None:
    """z = x: those of 0.9, 2.2 and 3 meet the public 1 and 2, so q = 1 · 1 + 2 · (10 + 100)."""
    half = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        half.weight.fill_(1.0)
    maker = GuideMaker(half, ParameterVector(half), torch.tensor([[1.0], [2.0]]))
    z = np.array([[0.9], [2.2], [3.0]], np.float32)
    answers = [(z, np.array([[1.0], [10.0], [100.0]], np.float32), 1.0)]
    assert maker.gradient(0, answers).tolist() == [221.0]
    found = maker.guide(0, answers)
    assert found is not None and (found.signs, found.factors.tolist()) == (b"\0", [1.0, 1.0])


def test_positions_of_zeros_take_no_part_by_hand() -> None:
    """z = x: padding (0) finds nothing, and 0.1 goes to 1, not to the 0 that is nearer.

    So q = 1 · 10: the λ of 7 on padding is nobody's.
    """
    half = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        half.weight.fill_(1.0)
    maker = GuideMaker(half, ParameterVector(half), torch.tensor([[0.0], [1.0]]))
    lam = np.array([[7.0], [10.0]], np.float32)
    assert maker.gradient(0, [(np.array([[0.0], [0.1]], np.float32), lam, 1.0)]).tolist() == [10.0]
    dead = GuideMaker(half, ParameterVector(half), torch.zeros(2, 1))
    assert dead.guide(0, [(np.ones((2, 1), np.float32), lam, 1.0)]) is None


def test_a_round_draws_its_inputs_of_the_seed() -> None:
    """With one input drawn of 1 … 8, q of λ = 1 is that input."""
    half, x = nn.Linear(1, 1, bias=False), torch.arange(1.0, 9.0)[:, None]

    def drawn(seed: int, samples: int = 1) -> list[float]:
        maker = GuideMaker(half, ParameterVector(half), x, samples, seed)
        one = np.ones((1, 1), np.float32)
        return [float(maker.gradient(round, [(one, one, 1.0)])) for round in range(6)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert set(drawn(0)) <= set(x[:, 0].tolist()) and len(set(drawn(0))) > 1
    assert len(set(drawn(0, samples=8))) == 1


def test_a_momentum_makes_it_of_the_mean_of_rounds_by_hand() -> None:
    """q is λ x' of the two weights: of (4, 0) and (0, 1), with m = 1/4, are made (3, 0), (¾, ¾)."""
    half = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        half.weight.zero_()
    half.register_forward_hook(lambda module, args, z: z + 1.0)  # z = 1: no position is dead
    vector, one = ParameterVector(half), np.ones((1, 1), np.float32)

    def maker(x: list[float]) -> GuideMaker:
        return GuideMaker(half, vector, torch.tensor([x]), momentum=0.25)

    first, second = maker([4.0, 0.0]), maker([0.0, 1.0])
    assert first.tensors() == {}
    guides = [first.guide(0, [(one, one, 1.0)])]
    second.load_tensors(first.tensors())
    bad = np.full_like(one, np.inf)
    assert second.guide(1, [(one, bad, 1.0)]) is None  # and the mean stays
    guides.append(second.guide(1, [(one, one, 1.0)]))
    expected = [Guide.towards(np.array(q, np.float32), vector.shapes) for q in ([3, 0], [3, 3])]
    assert guides == expected
    assert second.tensors()["guide_mean"].tolist() == [0.75, 0.75]


def test_more_inputs_than_there_are_cannot_be_drawn() -> None:
    half = vectors()
    with pytest.raises(
        ConfigError, match=r"guide_samples is 4, but the guide has 3 inputs .* 3, or 0"
    ):
        GuideMaker(half, ParameterVector(half), draw(3, 6), 4)


def test_no_lambda_no_guide() -> None:
    half = vectors()
    maker = GuideMaker(half, ParameterVector(half), draw(3, 6))
    z = np.ones((2, 5), np.float32)
    assert maker.guide(0, [(z, np.zeros_like(z), 1.0)]) is None


def test_of_many_positions_evenly_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    half, x = convolutions(), CASES["images"][1]
    vector = ParameterVector(half)
    z = half(x).detach()
    lam = torch.ones_like(z)
    whole = GuideMaker(half, vector, x).guide(0, [(z.numpy(), lam.numpy(), 1.0)])
    monkeypatch.setattr("sfl_flower.server.guide._MOST", 7)
    fewer = GuideMaker(half, vector, x).guide(0, [(z.numpy(), lam.numpy(), 1.0)])
    assert whole is not None and fewer is not None and whole.signs != fewer.signs


def test_the_half_stays_as_it_was() -> None:
    half = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in half.state_dict().items()}
    maker = GuideMaker(half, ParameterVector(half), draw(8, 6))
    z = np.ones((2, 5), np.float32)
    one, two = maker.guide(0, [(z, z, 1.0)]), maker.guide(0, [(z, z, 1.0)])
    assert one is not None and two is not None and one.encode() == two.encode()
    assert half.training and all(part.training for part in half)
    assert all(torch.equal(value, before[name]) for name, value in half.state_dict().items())


def words(**more: Any) -> SplitTask:
    def model() -> nn.Module:
        layers = (("words", nn.Embedding(9, 4)), ("mix", nn.Linear(4, 5)), ("act", nn.Tanh()))
        return nn.Sequential(
            OrderedDict([*layers, ("flat", nn.Flatten()), ("out", nn.Linear(15, 3))])
        )

    def data() -> Samples:
        return Samples(tokens(12, 3), torch.arange(12) % 3)

    return SplitTask("words", model, "act", data, data, 3, **more)


@pytest.mark.parametrize(
    ("kind", "task", "says"),
    [
        ("public", tiny.task(), "'tiny' has no public samples; .* or use guide=noise or none"),
        ("public", words(), "'words' has no public samples"),
        ("noise", words(), "guide is 'noise' .*nor can noise stand in .*int64; give it public=,"),
        (
            "noise",
            words(public=lambda: Samples(tokens(4, 3), torch.arange(4) % 3)),
            "nor can noise stand in for inputs of torch.int64; use guide=public, for the task",
        ),
        (
            "public",
            tiny.task(public=lambda: Samples(torch.ones(4, 9), torch.zeros(4, dtype=torch.long))),
            r"cannot run inputs of a guide, of shape \[9\]: .*samples like train\(\)",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(kind: str, task: SplitTask, says: str) -> None:
    half = task.build(0).client
    with pytest.raises(ConfigError, match=says):
        guide_maker(kind, task, 0, half, ParameterVector(half))


def test_noise_is_drawn_of_the_seed() -> None:
    task = tiny.task()
    half = task.build(0).client
    makers = [guide_maker("noise", task, seed, half, ParameterVector(half)) for seed in (0, 0, 1)]
    found = [maker._x for maker in makers if maker is not None]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert guide_maker("none", task, 0, half, ParameterVector(half)) is None
