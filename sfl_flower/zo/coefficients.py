"""What directions are multiplied by in a step: the scalars of a mini-batch over ``P · unit``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfl_flower.zo.clipping import clip_scalars
from sfl_flower.zo.keys import Key, philox_key
from sfl_flower.zo.spread import spread_scalars

if TYPE_CHECKING:  # what few runs need
    from sfl_flower.zo.directions import Directions
    from sfl_flower.zo.guide import Guide

__all__ = [
    "StepRule",
    "condition_guided",
    "condition_scalars",
    "drawn_signs",
    "step_coefficients",
]

_SIGN = 255
"""Stands for a law's tag in the key of a sign; no law has it."""


def condition_scalars(
    scalars: NDArray[np.floating], unit: float, clip_norm: float = 0.0, scale: str = "none"
) -> NDArray[np.float64]:
    """Scale the scalars of one mini-batch of one client: to a spread of 1, then by clipping.

    Parameters
    ----------
    scalars : numpy.ndarray
        v, shape [P].
    unit : float
        What a scalar is divided by to be a derivative.
    clip_norm : float
        See `clip_scalars`; 0: no clipping.  It is the norm after the scaling.
    scale : {"none", "spread"}
        See `spread_scalars`.

    Returns
    -------
    numpy.ndarray
        float64, shape [P].
    """
    scaled = spread_scalars(scalars, unit) if scale == "spread" else scalars
    return clip_scalars(scaled, unit, clip_norm)


def condition_guided(
    scalars: NDArray[np.floating], unit: float, clip_norm: float, scale: str, size: int
) -> NDArray[np.float64]:
    """Scale the scalars of a mini-batch of which the last is a guide's.

    The others are scaled as `condition_scalars` does, for they tell of the gradient's norm, and the
    guide's by the same number.  What it tells along its direction is then no more than `clip_norm`.

    Parameters
    ----------
    scalars : numpy.ndarray
        v, shape [P + 1].
    unit, clip_norm, scale : float, float, str
        As in `condition_scalars`.
    size : int
        d, the squared norm of the guide.

    Returns
    -------
    numpy.ndarray
        float64, shape [P + 1].
    """
    plain, along = scalars[:-1].astype(np.float64), float(scalars[-1])
    scaled = condition_scalars(scalars[:-1], unit, clip_norm, scale)
    before, after = (math.sqrt(math.fsum((v * v).tolist())) for v in (plain, scaled))
    along *= after / before if before else 1.0
    if clip_norm > 0:
        most = clip_norm * unit * math.sqrt(size)
        along = min(max(along, -most), most)
    return np.append(scaled, along)


def step_coefficients(
    scalars: NDArray[np.floating], unit: float, clip_norm: float = 0.0, scale: str = "none"
) -> NDArray[np.float32]:
    """Return the factors of the directions of one step, ``v_p / (P · unit)`` of scaled scalars.

    The client and whoever rebuilds its step compute them to the same bits.

    Parameters
    ----------
    scalars : numpy.ndarray
        v, shape [P]; rounded to float32, as they travel.
    unit : float
        What a scalar is divided by to be a derivative: `Probing.unit`, or 2 μ for a difference
        between θ + μu and θ - μu that was not halved.
    clip_norm, scale : float, str
        See `condition_scalars`.

    Returns
    -------
    numpy.ndarray
        float32, shape [P], rounded once. Not checked for finiteness.
    """
    with np.errstate(over="ignore"):
        found = condition_scalars(scalars.astype(np.float32), unit, clip_norm, scale)
        factors: NDArray[np.float32] = (found / (scalars.size * unit)).astype(np.float32)
    return factors


def drawn_signs(run: bytes, keys: Sequence[Key]) -> NDArray[np.float32]:
    """Return ±1 for each scalar of a walk: it keeps its size, and its sign is that of its key.

    Whoever can derive the directions has the same signs, whatever the machine.

    Parameters
    ----------
    run : bytes
        From `run_key`, 16 bytes.
    keys : sequence of Key
        Of the scalars' directions.

    Returns
    -------
    numpy.ndarray
        float32, as many as keys.
    """
    return np.array([1 - 2 * (philox_key(run, key, _SIGN) & 1) for key in keys], np.float32)


@dataclass(frozen=True)
class StepRule:
    """How the scalars of a local step become what it goes along.

    The client and whoever rebuilds its step follow it to the same bits.

    Attributes
    ----------
    unit, clip_norm, scale : float, float, str
        As in `step_coefficients`.
    walk : bool
        Whether scalars keep their sizes alone and their signs are those of `drawn_signs`.
    rest : float
        ρ of `sfl_flower.zo.guided`, what the part off a guide counts: in a step without one, all.
    """

    unit: float
    clip_norm: float = 0.0
    scale: str = "none"
    walk: bool = False
    rest: float = 1.0

    def terms(
        self,
        scalars: NDArray[np.floating],
        keys: Sequence[Key],
        directions: Directions,
        guide: Guide | None = None,
    ) -> tuple[NDArray[np.float32], Guide | None]:
        """Return the factors of a step's directions, and the guide times its own factor.

        Parameters
        ----------
        scalars : numpy.ndarray
            v, finite, shape [P], or [P + 1] with a guide, whose scalar is the last; rounded to
            float32, as they travel.
        keys : sequence of Key
            Of the P directions.
        directions : Directions
            Of the client.
        guide : Guide, optional
            That of the round; the sign of its scalar is that of the key after the last.

        Returns
        -------
        tuple of numpy.ndarray and Guide
            float32, shape [P], and the guide, or None without one.

        Raises
        ------
        JournalError
            If a factor of the guide leaves its range.
        """
        own = (self.unit, self.clip_norm, self.scale)
        if guide is None:
            factors = step_coefficients(scalars, *own)
            if self.walk:
                factors *= drawn_signs(directions.run_key, keys)
            factors *= np.float32(self.rest)  # all of it is off the guide that this step lacks
            return factors, None
        from sfl_flower.zo.guide import guided

        found = condition_guided(scalars.astype(np.float32), *own, guide.size) / self.unit
        if self.walk:
            after = replace(keys[-1], probe=keys[-1].probe + 1)
            found *= drawn_signs(directions.run_key, [*keys, after])
        of_keys, along = found[:-1] / len(keys), float(found[-1])
        rest, term = guided(keys, of_keys, directions, guide, along, self.rest)
        with np.errstate(over="ignore"):
            return rest.astype(np.float32), term
