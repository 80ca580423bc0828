"""Aggregators that some false clients cannot lead far, and nearest-neighbour mixing before them.

Each sees a client's numbers as one vector: its scalars, with shared directions, of which there are
as many whatever the size of the model, or its weights.  Random directions over many parameters are
nearly at right angles, so distances between scalars are those between the steps that they tell of,
but for one factor.  Everything is float64 and in the order of the clients; ties go to the first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.server.verdict import Verdict, middle, outlying, places

__all__ = ["Clip", "Krum", "Median", "MultiKrum", "Robust", "Trimmed"]

Columns = Callable[[], Iterator[Tensor]]
"""Gives the clients' numbers anew each time, tensor by tensor, float64, shape [clients, m]."""
Rule = Callable[[Tensor], Tensor]
"""Makes [m] of a tensor's [clients, m]."""


class Robust(ABC):
    """What robust aggregators share; clients count the same.  See `Aggregator`.

    Parameters
    ----------
    mixed : int
        F of nearest-neighbour mixing before the rule (Allouah et al. 2023, arXiv 2302.01772): every
        client's numbers become the mean of the K - F that are nearest to them, its own among them.
        0 for none.

    Attributes
    ----------
    verdict : Verdict or None
        What the last call made of each client.
    """

    linear = False
    alone = False
    needs = 1
    """Clients that the rule needs."""

    def __init__(self, mixed: int = 0) -> None:
        self._mixed = mixed
        self.verdict: Verdict | None = None

    @abstractmethod
    def rule(self, columns: Columns, clients: int) -> tuple[Rule, tuple[int, ...]]:
        """Return what each tensor's numbers go through, and the places of those that count less."""

    @property
    def fewest(self) -> int:
        """Clients that are needed; of fewer the coordinate median is taken, with a note."""
        return max(self.needs, 2 * self._mixed + 1)

    def scalars(
        self, scalars: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return what comes of the scalars, times ``Σ_k shares_k``, shape [steps, probes]."""
        rows = torch.from_numpy(scalars.reshape(len(scalars), -1))
        (found,) = self._together(lambda: iter([rows]), lambda: iter([rows]), len(rows))
        together: NDArray[np.float64] = found.numpy().reshape(scalars.shape[1:]) * shares.sum()
        return together

    def apart(self, scalars: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raise, as a rule that compares numbers must; `alone` says so before."""
        raise NotImplementedError

    def states(
        self, states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return what comes of every tensor; all states are in memory at once."""
        held = list(states)
        real = [name for name, value in held[0].items() if value.is_floating_point()]

        def columns(names: Iterable[str]) -> Iterator[Tensor]:
            for name in names:
                yield torch.stack([state[name].reshape(-1).to(torch.float64) for state in held])

        found = self._together(lambda: columns(real), lambda: columns(held[0]), len(held))
        together = {}
        for (name, first), value in zip(held[0].items(), found, strict=True):
            exact = value if first.is_floating_point() else value.round()
            together[name] = exact.to(first.dtype).reshape(first.shape)
        return together

    def _together(self, measured: Columns, every: Columns, clients: int) -> Iterator[Tensor]:
        """Yield what comes of every tensor, of distances between those that are measured."""
        few = clients < self.fewest
        near = None
        if self._mixed and not few:
            near = _nearest(_squares(measured, clients), clients - self._mixed)

        def blended(columns: Columns) -> Iterator[Tensor]:
            return (each if near is None else near @ each for each in columns())

        chosen = Median() if few else self
        rule, less = chosen.rule(lambda: blended(measured), clients)
        squares = sum(
            (each - rule(mixed)).square().sum(dim=1)
            for each, mixed in zip(measured(), blended(measured), strict=True)
        )
        far = outlying(squares) if isinstance(squares, Tensor) else ()
        self.verdict = Verdict(far, less, self._said(clients) if few else "")
        for mixed in blended(every):
            yield rule(mixed)

    def _said(self, clients: int) -> str:
        return (
            f"{clients} answers are fewer than the {self.fewest} that the run's aggregator needs: "
            "their coordinate median stands in for it."
        )


class Median(Robust):
    """The median of every number on its own.

    Less than half of the clients cannot take a number out of the range of the others'. Of an even
    number of clients it is the mean of the two in the middle.
    """

    def rule(self, columns: Columns, clients: int) -> tuple[Rule, tuple[int, ...]]:
        """Return the median."""
        return middle, ()


class Trimmed(Robust):
    """The mean of every number without the largest and the smallest (arXiv 1803.01498).

    Parameters
    ----------
    share : float
        How many of the clients' are left out at each end, in (0, 0.5): rounded down, at least one.
    mixed : int
        As `Robust`.
    """

    needs = 3

    def __init__(self, share: float, mixed: int = 0) -> None:
        super().__init__(mixed)
        self._share = share

    def rule(self, columns: Columns, clients: int) -> tuple[Rule, tuple[int, ...]]:
        """Return the mean of what is left."""
        out = max(1, math.floor(self._share * clients + 1e-9))
        return lambda values: values.sort(dim=0).values[out : clients - out].mean(dim=0), ()


class Krum(Robust):
    """The numbers of the client that is nearest to others (Blanchard et al. 2017).

    The score of a client is the sum of the squared distances to the K - F - 2 that are nearest to
    it (arXiv 1703.02757); the lowest counts.

    Parameters
    ----------
    false : int
        F, the clients that may be false; 2 F + 3 are needed.
    mixed : int
        As `Robust`.
    """

    def __init__(self, false: int, mixed: int = 0) -> None:
        super().__init__(mixed)
        self._false = false
        self.needs = 2 * false + 3

    def rule(self, columns: Columns, clients: int) -> tuple[Rule, tuple[int, ...]]:
        """Return the mean of those with the lowest scores."""
        squares = _squares(columns, clients)
        nearest = squares.sort(dim=1).values[:, 1 : clients - self._false - 1]  # 0 is to itself
        order = nearest.sum(dim=1).argsort(stable=True)
        kept = order[: self._kept(clients)].sort().values
        return lambda values: values[kept].mean(dim=0), ()

    def _kept(self, clients: int) -> int:
        return 1


class MultiKrum(Krum):
    """The mean of the K - F clients with the lowest scores; see `Krum`."""

    def _kept(self, clients: int) -> int:
        return clients - self._false


class Clip(Robust):
    """The mean over clients after each is drawn in towards the middle, if it is far from it.

    Centred clipping (Karimireddy et al. 2021, arXiv 2012.10333) about the coordinate median, or
    about 0 where no two clients share a direction, with a radius that follows the clients.

    Parameters
    ----------
    factor : float
        The radius, in medians of the clients' distances from the middle.
    mixed : int
        As `Robust`.
    """

    alone = True

    def __init__(self, factor: float, mixed: int = 0) -> None:
        super().__init__(mixed)
        self._factor = factor

    def rule(self, columns: Columns, clients: int) -> tuple[Rule, tuple[int, ...]]:
        """Return the mean of what was drawn in."""
        squares = sum((each - middle(each)).square().sum(dim=1) for each in columns())
        if not isinstance(squares, Tensor):
            return middle, ()
        counts = self._counts(squares)[:, None]

        def drawn(values: Tensor) -> Tensor:
            centre = middle(values)
            return centre + ((values - centre) * counts).mean(dim=0)

        return drawn, places(counts[:, 0] < 1)

    def apart(self, scalars: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scalars of which no two clients' are along one direction, drawn in about 0."""
        squares = torch.from_numpy(np.square(scalars).sum(axis=(1, 2)))
        counts = self._counts(squares)
        self.verdict = Verdict(outlying(squares), places(counts < 1))
        drawn: NDArray[np.float64] = scalars * counts.numpy()[:, None, None]
        return drawn

    def _counts(self, squares: Tensor) -> Tensor:
        """Return how much of each client's distance is left, from squared ones."""
        norms = squares.sqrt()
        return (self._factor * middle(norms) / norms).nan_to_num(nan=1.0).clamp(max=1.0)


def _squares(columns: Columns, clients: int) -> Tensor:
    """Return the squared distances between clients, float64, shape [clients, clients].

    Of what has no numbers to measure, counters alone, all are 0.
    """
    how = "donot_use_mm_for_euclid_dist"  # differences are taken, so equal vectors are 0 apart
    parts = [torch.cdist(each, each, compute_mode=how).square() for each in columns()]
    return torch.stack([torch.zeros(clients, clients, dtype=torch.float64), *parts]).sum(dim=0)


def _nearest(squares: Tensor, count: int) -> Tensor:
    """Return the matrix that gives each client the mean of those nearest to it."""
    order = squares.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(squares).scatter_(1, order, 1.0 / count)
