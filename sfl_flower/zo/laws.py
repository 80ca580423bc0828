"""The laws of directions by name. A new one is a file with a `Law`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from sfl_flower.errors import ConfigError
from sfl_flower.zo.law import Law
from sfl_flower.zo.normal_laws import Gaussian, Sphere
from sfl_flower.zo.signs import Rademacher, RankOne

__all__ = ["LAWS", "find_law"]

LAWS: Mapping[str, Law] = {law.name: law for law in (Rademacher(), Gaussian(), Sphere(), RankOne())}
"""Each has ``E[u uᵀ] = I``, so one learning rate means the same for all."""


def find_law(law: str | int) -> Law:
    """Return the law of this name or tag.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for known in LAWS.values():
        if law in (known.name, known.tag):
            return known
    raise ConfigError(f"Unknown direction law {law!r}; use one of {', '.join(LAWS)}.")
