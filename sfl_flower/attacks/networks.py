"""The attacker's networks: decoders from smashed data to inputs, and critics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

__all__ = ["Critic", "Decoder", "Standard"]

WIDTH = 32
"""Channels inside, where a picture is drawn."""
MOST_DIRECT = 4_000_000
"""Weights of a layer from all smashed data to all of an input, at most; without it beyond."""
MOST_GRID = 16_000_000
"""Weights of the layer to the small grid, at most; the grid is made smaller beyond."""

BLUR = 1.0
"""Noise with which a decoder learns from smashed data that are only like those it is for.

In their standard deviations. Without it little that differs between the two becomes large in what
the decoder makes of them.
"""


class Standard(nn.Module):
    """Shifts and scales smashed data to mean 0 and spread 1, as they were when it was made.

    Parameters
    ----------
    z : Tensor
        Smashed data, [N, ...]; channels [N, C, H, W] are scaled apart, other elements each.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        dims = [0, 2, 3] if z.dim() == 4 else [0]
        mean, spread = z.mean(dims, keepdim=True), z.std(dims, keepdim=True)
        least = 1e-6 + 1e-3 * float(spread.max())
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread.clamp_min(least))

    def blurred(self, z: Tensor, drawn: np.random.Generator) -> Tensor:
        """Return smashed data with noise of `BLUR` of their spread."""
        noise = torch.from_numpy(drawn.standard_normal(z.shape, dtype=np.float32))
        return z + BLUR * self.spread * noise

    def forward(self, z: Tensor) -> Tensor:
        """Return what it stands for."""
        return (z - self.mean) / self.spread


class Decoder(nn.Module):
    """From smashed data and labels to inputs in 0 .. 1.

    A picture is drawn by convolutions, from the grid of the smashed data where they have one and
    else from a small one, which grows twofold at a time; one layer from all smashed data to all
    pixels is added where it has at most 4 million weights. Of other inputs it is that layer and two
    more. An input a label is added to all, 0 until it is set.

    Parameters
    ----------
    z : Tensor
        Smashed data to standardise by, [N, ...].
    shape : sequence of int
        Of an input, [C, H, W] or any other.
    classes : int
        Labels that there are.
    """

    def __init__(self, z: Tensor, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        size, total = z[0].numel(), math.prod(shape)
        self.standard = Standard(z)
        self.shape = tuple(shape)
        self.of_class = nn.Embedding(classes, total, _weight=torch.zeros(classes, total))
        self.direct = nn.Linear(size, total) if size * total <= MOST_DIRECT else None
        if len(shape) != 3:
            inside = min(512, 4 * max(size, total))
            self.last: nn.Linear | nn.Conv2d = nn.Linear(inside, total)
            self.drawn = nn.Sequential(nn.Flatten(), nn.Linear(size, inside), nn.ReLU(), self.last)
            return
        layers: list[nn.Module] = []
        height = shape[1]
        if z.dim() == 4:
            layers += [nn.Conv2d(z.shape[1], WIDTH, 3, padding=1), nn.ReLU()]
            side = z.shape[2]
        else:
            grid = [-(-shape[1] // 4), -(-shape[2] // 4)]
            while size * WIDTH * math.prod(grid) > MOST_GRID and max(grid) > 1:
                grid = [-(-side // 2) for side in grid]
            layers += [nn.Flatten(), nn.Linear(size, WIDTH * math.prod(grid)), nn.ReLU()]
            layers += [nn.Unflatten(1, (WIDTH, *grid))]
            side = grid[0]
        while 2 * side <= height:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
            layers += [nn.ReLU()]
            side *= 2
        layers += [_Resized(shape[1:]), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
        self.last = nn.Conv2d(WIDTH, shape[0], 3, padding=1)
        self.drawn = nn.Sequential(*layers, self.last)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return inputs, [N, *shape], not cut off at 0 and 1."""
        given = self.standard(z)
        found: Tensor = self.drawn(given).reshape(len(z), *self.shape)
        if self.direct is not None:
            found = found + self.direct(given.flatten(1)).reshape(found.shape)
        mean: Tensor = self.of_class(y)
        return found + mean.reshape(found.shape)


class _Resized(nn.Module):
    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures of the size."""
        if tuple(x.shape[2:]) == self.size:
            return x
        return interpolate(x, self.size, mode="bilinear", align_corners=False)


class Critic(nn.Module):
    """Tells one kind of tensors from another: a number a sample, or one for each label it may have.

    Parameters
    ----------
    like : Tensor
        What it judges, [N, ...].
    labels : int
        Numbers a sample.
    wrap : callable, optional
        Around every layer that has weights, such as spectral normalisation.
    """

    def __init__(
        self,
        like: Tensor,
        labels: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Standard(like)]
        if like.dim() == 4 and min(like.shape[2:]) >= 4:
            wide = [like.shape[1], WIDTH, WIDTH]
            for before, after in pairwise(wide):
                layers += [wrap(nn.Conv2d(before, after, 3, stride=2, padding=1))]
                layers += [nn.LeakyReLU(0.2)]
        with torch.no_grad():
            size = nn.Sequential(*layers)(like[:2]).flatten(1).shape[1]
        inside = min(256, max(64, size))
        layers += [nn.Flatten(), wrap(nn.Linear(size, inside)), nn.LeakyReLU(0.2)]
        layers += [wrap(nn.Linear(inside, labels))]
        self.layers = nn.Sequential(*layers)

    @property
    def spread(self) -> Tensor:
        """What differences of one of its elements are divided by."""
        standard = self.layers[0]
        assert isinstance(standard, Standard)
        return standard.spread

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the number of each sample, [N], of its label where there are some."""
        found: Tensor = self.layers(x)
        return found[:, 0] if y is None else found.gather(1, y[:, None])[:, 0]
