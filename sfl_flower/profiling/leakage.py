"""How much of its inputs a client shows at each cut, and which cuts show less than a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfl_flower.errors import ConfigError
from sfl_flower.profiling.cuts import WHOLE, CutProfile

__all__ = ["Leakage"]


@dataclass(frozen=True)
class Leakage:
    """What a decoder makes of the smashed data of each cut.

    Attributes
    ----------
    shares : Mapping of str to float
        By cut the mean squared error of reconstructions over that of the better guess, the mean
        input or the mean of its class: 1 and more where nothing is shown, 0 for the inputs
        themselves.
    least : float
        Cuts whose share is below are not recommended; 0 for no limit.
    """

    shares: Mapping[str, float]
    least: float = 0.0

    def allowed(self, rows: Sequence[CutProfile]) -> list[CutProfile]:
        """Return the cuts that show little enough, and the whole model, which shows nothing.

        Raises
        ------
        ConfigError
            If no cut is among them.
        """
        found = [row for row in rows if row.at == WHOLE or self.shares[row.at] >= self.least]
        if all(row.at == WHOLE for row in found):
            best = max(self.shares, key=lambda at: self.shares[at])
            raise ConfigError(
                f"leakage is {self.least:g}; no cut leaves a decoder that share of a guess's "
                f"error. The most is {self.shares[best]:.3g}, at '{best}'; ask for no more than "
                "that, or take a method without a cut, such as decomfl."
            )
        return found

    def advice(self) -> tuple[str, ...]:
        """Return in sentences what is shown where."""
        most, least = (pick(self.shares, key=lambda at: self.shares[at]) for pick in (min, max))
        said = (
            f"Inputs show most at '{most}' (a decoder is left with {self.shares[most]:.2g} of a "
            f"guess's error) and least at '{least}' ({self.shares[least]:.2g}); these are first "
            "weights and one attacker, which bounds nothing: sfl attack tries more."
        )
        if not self.least:
            return (said,)
        out = [at for at, share in self.shares.items() if share < self.least]
        without = f"Left out, below {self.least:g}: {', '.join(out)}." if out else ""
        return (said, without) if without else (said,)
