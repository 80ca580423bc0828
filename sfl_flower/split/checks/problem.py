"""A reason why a client half cannot be trained by forwards alone."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """Something that breaks a zeroth-order client.

    Attributes
    ----------
    layer : str
        Qualified name of the layer (or of the parameter or buffer); empty for the whole half.
    what : str
        What is wrong.
    fix : str
        What to do about it.
    """

    layer: str
    what: str
    fix: str

    def __str__(self) -> str:
        """Return the problem as one sentence."""
        where = f"'{self.layer}'" if self.layer else "the client half"
        return f"{where}: {self.what}; {self.fix}"
