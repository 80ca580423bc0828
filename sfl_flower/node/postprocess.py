"""What a client may do to an answer before it leaves: clip it, add noise to it, mask it.

A postprocessor is a callable from a method's reply to the reply that is sent, given to
`make_client_app` and called with every reply that is made of the client's data.  Its randomness is
the client's own: what derives from the run's seed the server can derive too, and take off again.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sfl_flower.errors import ConfigError
from sfl_flower.options import check_range
from sfl_flower.wire import Reply

__all__ = ["NoisyScalars", "Postprocess", "secret_generator"]

Postprocess = Callable[[Reply], Reply]
"""Gives the reply to send in place of a method's answer; the same fields, dtypes and shapes."""


def secret_generator() -> np.random.Generator:
    """Return a generator with 256 bits of the operating system's randomness as its seed."""
    return np.random.default_rng(secrets.randbits(256))


@dataclass(frozen=True)
class NoisyScalars:
    """Clips the scalars of a reply, then adds Gaussian noise; what else a reply holds stays.

    It bounds and blurs what the scalars tell.  Smashed data and labels that a method sends beside
    them, or ahead of them, tell as much as before.  Where a method's answer is its weights, nothing
    would be clipped or noised, so nothing is sent.

    Parameters
    ----------
    noise : float
        Standard deviation of the noise on each scalar v, in the unit of the loss.
    clip : float
        Largest Euclidean norm of all scalars of a reply; longer ones are scaled down to it.
    generator : callable
        Gives the generator of one reply.  A new one for each, so that no two processes that were
        copied from one another draw the same noise; a test may give its own.

    Raises
    ------
    ConfigError
        If noise or clip is out of range.
    """

    noise: float = 0.0
    clip: float = math.inf
    generator: Callable[[], np.random.Generator] = secret_generator

    def __post_init__(self) -> None:
        check_range("noise", self.noise, 0)
        if not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; it must be above 0, inf for no clipping.")

    def __call__(self, reply: Reply) -> Reply:
        """Return the reply with its scalars clipped and noised, float32 of the same shape.

        Raises
        ------
        ConfigError
            If it brings weights instead of scalars, or scalars under masks.
        """
        given: Any = reply
        scalars = getattr(given, "scalars", None)
        if getattr(given, "numbers", None) is not None:
            raise ConfigError(
                "NoisyScalars comes after the masks of secure_sums=true, under which nothing can "
                "be clipped; set secure_sums=false, or leave the postprocessor out."
            )
        if scalars is None:
            if getattr(given, "weights", None):
                raise ConfigError(
                    "NoisyScalars leaves weights as they are, and this method sends weights; use "
                    "a method of scalars (ho_sfl, decomfl, heron with uplink=scalars), or a "
                    "postprocessor of your own for weights."
                )
            return reply
        values = np.asarray(scalars, dtype=np.float64)
        norm = float(np.linalg.norm(values))
        if norm > self.clip:
            values = values * (self.clip / norm)
        values = values + self.noise * self.generator().standard_normal(values.shape)
        sent: Reply = replace(given, scalars=values.astype(np.float32))
        return sent
