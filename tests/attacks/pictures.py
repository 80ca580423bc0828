"""Pictures of 4 x 4 with a stripe in one of four columns, and models of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.task import Samples, SplitTask

SIDE = 4
FEW = AttackSettings(
    victims=16, auxiliary=64, observed=64, epochs=25, known=3, clients=2, rounds=1, batch=16
)


def striped(count: int, seed: int = 0, classes: int = SIDE) -> Samples:
    """Return pictures whose bright column is their label, of a brightness and noise of its own."""
    drawn = np.random.default_rng(seed)
    x = 0.1 * drawn.random((count, 1, SIDE, SIDE), np.float32)
    y = drawn.integers(classes, size=count)
    for row, column in enumerate(y):
        x[row, 0, :, column] = 0.4 + 0.6 * drawn.random(SIDE)
    return Samples(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))


class Still(nn.Module):
    """Gives the same smashed data whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ones, [N, 6]."""
        return x.flatten(1)[:, :6] * 0 + 1


class Cast(nn.Module):
    """Gives inputs of any kind as numbers, [N, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 of 0 .. 1 for bytes."""
        return x.float().flatten(1) / 255


def model(inside: int = 16, classes: int = SIDE) -> nn.Module:
    """Return 16 -> inside -> 8 -> classes; `flatten` is as good as the picture."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            first=nn.Linear(SIDE * SIDE, inside),
            hidden=nn.Linear(inside, 8),
            act=nn.Tanh(),
            out=nn.Linear(8, classes),
        )
    )


def still() -> nn.Module:
    """Return a model whose client half forgets everything."""
    return nn.Sequential(OrderedDict(still=Still(), hidden=nn.Linear(6, 8), out=nn.Linear(8, SIDE)))


def task(
    build: Callable[[], nn.Module] = model, cut: str = "first", classes: int = SIDE
) -> SplitTask:
    """Return the task: 200 training and 40 test pictures."""
    return SplitTask(
        name="stripes",
        model=build,
        cut=cut,
        train=lambda: striped(200, 1, classes),
        test=lambda: striped(40, 2, classes),
        classes=classes,
    )
