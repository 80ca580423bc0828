"""Smashed data and scalars that are far larger than the cohort's are not used.

Each reply has a size, the root mean square of what it brings.  Sizes of honest clients are spread
over a factor that changes with the task and with time, so what is believed follows them: from the
sizes of the last rounds, as logarithms, come a median m and the median absolute deviation, which
times 1.4826 is a standard deviation σ.  A reply is refused where its size is beyond ``m + 3 σ`` by
more than the factor, or where the median of the client's own last replies is beyond ``m + σ`` by
more than it, which finds a client that exaggerates every time.  Neither median nor deviation moves
far while fewer than half of the replies are false.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np
import torch
from torch import Tensor

from sfl_flower.config import RunConfig
from sfl_flower.errors import WireError
from sfl_flower.server.riders import mark_scalars, mark_smashed
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally

__all__ = ["SCALARS", "SMASHED", "Screening"]

SCALARS, SMASHED = "scalars", "smashed data"
"""What is screened, each kind apart."""

ROUNDS = 10
"""Rounds whose replies say what is usual."""
ONCE, OFTEN = 3.0, 1.0
"""Standard deviations σ that are believed of one reply, and of the median of a client's last."""
LEAST_SPREAD = 0.25
"""The least that σ counts as, of the natural logarithm."""
FEWEST = 3
"""Replies without which nothing is known of what is usual."""
OWN = 4
"""Replies of a client from which its own median is taken, at least."""

Seen = tuple[int, float, bool]
"""Partition, logarithm of the size, and whether the reply was used."""


class Screening:
    """What of a run's replies is usual.

    Parameters
    ----------
    config : RunConfig
        Its `outlier_factor` says how much more is believed; 0 refuses nothing.
    """

    def __init__(self, config: RunConfig) -> None:
        self._factor = config.outlier_factor
        self._length = ROUNDS * config.cohort
        self._seen: dict[str, _Sizes] = {}

    def keep(
        self,
        what: str,
        brought: Mapping[Member, np.ndarray],
        tally: Tally,
        told: Sequence[np.ndarray] = (),
        compared: bool = True,
    ) -> list[Member]:
        """Return the clients, in the order given, that brought nothing out of the ordinary.

        Parameters
        ----------
        what : str
            `SCALARS` or `SMASHED`.
        brought : Mapping[Member, numpy.ndarray]
            What the replies of a round bring, of any shape.
        tally : Tally
            Is told of those that are refused, and of those that cost nothing to make.
        told : sequence of numpy.ndarray
            What the server told everybody, of which no scalars may be a multiple.
        compared : bool
            Whether it may be told of answers that they cost nothing to make.
        """
        if compared and what == SCALARS:
            mark_scalars(brought, tally, told)
        elif compared:
            mark_smashed(brought, tally)
        refused = self._look(what, brought)
        for member, why in refused.items():
            tally.reject(member, why)
        return [member for member in brought if member not in refused]

    def check(self, what: str, member: Member, brought: np.ndarray) -> None:
        """Refuse what one reply brings; for methods that use replies one after another.

        Raises
        ------
        WireError
            If it is far larger than what came before.
        """
        for why in self._look(what, {member: brought}).values():
            raise WireError(why)

    def _look(self, what: str, brought: Mapping[Member, np.ndarray]) -> dict[Member, str]:
        if not self._factor:
            return {}
        seen = self._seen.setdefault(what, _Sizes())
        logs = {member: _log_rms(value) for member, value in brought.items()}
        sizes = {member: size for member, size in logs.items() if size is not None}
        now = list(sizes.values())
        for size in now:
            insort(seen.used, size)
        refused: dict[Member, str] = {}
        if len(seen.used) >= FEWEST:
            middle = _median(seen.used)
            spread = 1.4826 * _deviation(seen.used, middle)
            # All clients at once may do more than before: then that is what is usual.
            middle = max(middle, median(now)) if len(now) >= FEWEST else middle
            spread = max(spread, LEAST_SPREAD)
            for member, size in sizes.items():
                own = [*seen.own.get(member.partition, ()), size]
                looks = [("its", size, ONCE)]
                if len(own) >= OWN:
                    looks.append((f"its last {len(own)} replies'", median(own), OFTEN))
                for whose, found, spreads in looks:
                    most = middle + spreads * spread + math.log(self._factor)
                    if found > most:
                        refused[member] = (
                            f"{whose} {what} are {_times(found - middle)} times as large as usual, "
                            f"and at most {_times(most - middle)} times is believed; raise "
                            "outlier-factor, or set it to 0, if this client is honest."
                        )
                        break
        for size in now:
            seen.leave_out(size)
        seen.extend([(m.partition, size, m not in refused) for m, size in sizes.items()])
        seen.keep(self._length)
        return refused

    def tensors(self) -> dict[str, Tensor]:
        """Return what was seen as named tensors, for a checkpoint: float64, shape [replies, 3]."""
        return {
            f"screening.{what}": torch.tensor(list(seen.rows), dtype=torch.float64).reshape(-1, 3)
            for what, seen in self._seen.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; other names are passed over."""
        for name, value in tensors.items():
            kind, _, what = name.partition(".")
            if kind == "screening":
                rows = [(int(p), float(size), bool(used)) for p, size, used in value.tolist()]
                self._seen[what] = seen = _Sizes()
                seen.extend(rows)
                seen.keep(self._length)


class _Sizes:
    """The sizes of the last replies, kept so that a look does not go through all of them.

    Attributes
    ----------
    rows : deque of Seen
        The replies, the oldest first.
    used : list of float
        The sizes of those that were used, ascending.
    own : dict of deque of float
        The sizes of each client's, by its partition, the oldest first.
    """

    def __init__(self) -> None:
        self.rows: deque[Seen] = deque()
        self.used: list[float] = []
        self.own: dict[int, deque[float]] = {}

    def extend(self, rows: Iterable[Seen]) -> None:
        """Add replies."""
        for partition, size, used in rows:
            self.rows.append((partition, size, used))
            self.own.setdefault(partition, deque()).append(size)
            if used:
                insort(self.used, size)

    def keep(self, length: int) -> None:
        """Forget all but the last replies."""
        while len(self.rows) > length:
            partition, size, used = self.rows.popleft()
            self.own[partition].popleft()
            if not self.own[partition]:
                del self.own[partition]
            if used:
                self.leave_out(size)

    def leave_out(self, size: float) -> None:
        """Take one of this size out of those that were used."""
        del self.used[bisect_left(self.used, size)]


def _median(ordered: Sequence[float]) -> float:
    """Return the median of ascending numbers, as `statistics.median` does."""
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _deviation(ordered: Sequence[float], middle: float) -> float:
    """Return the median distance of ascending numbers from one of them or between two of them.

    Distances to the left and to the right of the middle are two ascending sequences; how many of
    the smallest are to its left is found by halving.
    """
    count, near = len(ordered), bisect_left(ordered, middle)

    def left(index: int) -> float:
        return middle - ordered[near - 1 - index]

    def right(index: int) -> float:
        return ordered[near + index] - middle

    def smallest(k: int) -> float:
        low, high = max(0, k + 1 - (count - near)), min(k + 1, near)
        while low < high:
            of_left = (low + high) // 2
            if left(of_left) < right(k - of_left):
                low = of_left + 1
            else:
                high = of_left
        return max(([left(low - 1)] if low else []) + ([right(k - low)] if low <= k else []))

    return (smallest((count - 1) // 2) + smallest(count // 2)) / 2


def _log_rms(value: np.ndarray) -> float | None:
    """Return the logarithm of the root mean square, None where there is nothing but zeros."""
    square = float(np.square(value, dtype=np.float64).mean()) if value.size else 0.0
    return 0.5 * math.log(square) if square else None


def _times(log: float) -> str:
    return f"{math.exp(min(log, 200.0)):.3g}"
