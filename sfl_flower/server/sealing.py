"""Directions that clients cannot know before their smashed data are in: one option."""

from __future__ import annotations

from dataclasses import dataclass

from sfl_flower.config import Settings
from sfl_flower.data.seeding import has_secret, round_seal

__all__ = ["SealSettings"]


@dataclass(frozen=True)
class SealSettings(Settings):
    """Seals of a method whose clients send smashed data before they probe.

    Attributes
    ----------
    sealed : bool
        Whether a round's directions follow from 16 bytes that clients are told with λ, when their
        smashed data are in; where `SFL_SECRET` is not set, whoever guesses the seed knows them.
    """

    sealed: bool = False

    def seal(self, seed: int, round: int) -> bytes:
        """Return the seal of a round, empty where directions have none.

        Parameters
        ----------
        seed : int
            The run's seed.
        round : int
            The round.
        """
        return round_seal(seed, round) if self.sealed else b""

    def warnings(self) -> list[str]:
        """Return what to mind: seals that follow from the seed alone."""
        found = super().warnings()
        if self.sealed and not has_secret():
            found.append(
                "sealed=true without SFL_SECRET: seals follow from the run's seed alone, and "
                "whoever guesses it knows the directions of every round; set SFL_SECRET in the "
                "environment of the server (docs/privacy.md)."
            )
        return found
