"""What a client may do to its smashed data before they leave.

A defence is a chain of steps with commas between them: ``clip:1,noise:0.5`` or ``int4``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfl_flower.errors import ConfigError
from sfl_flower.wire import Reply
from sfl_flower.wire.encodings import SAYS, encoding_of

__all__ = ["PLAIN", "Defence", "check_defence"]

PLAIN = "none"
"""What a client without a defence is called."""
_STEP = re.compile(r"(clip|noise):([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)")
_MOST = 1e6


def check_defence(text: str) -> None:
    """Refuse what is no defence.

    Raises
    ------
    ConfigError
        If a step is neither ``clip:C``, ``noise:S`` nor an encoding of smashed data.
    """
    for step in text.split(","):
        if step == PLAIN and text == PLAIN:
            continue
        found = _STEP.fullmatch(step)
        if found is not None and 0 < float(found[2]) <= _MOST:
            continue
        try:
            encoding_of(step, "defence")
        except ConfigError:
            raise ConfigError(
                f"defence is '{text}', whose step '{step}' is none; each must be clip:C or noise:S "
                f"(above 0, at most {_MOST:g}), or {SAYS}; 'none' stands alone."
            ) from None


@dataclass(frozen=True)
class Defence:
    """A defence with numbers in the unit of the smashed data of a cut.

    ``clip:C`` scales a sample's smashed data down to C times the mean norm among the auxiliary
    samples, ``noise:S`` adds Gaussian noise of S times their standard deviation, and the name of an
    encoding sends them so. The steps follow one another in the order of the text.  Gradients pass
    clips and noise as they are, and encodings as if these changed nothing (straight through), so an
    attacker can train through it.

    Positions of texts, z [N, T, H], whose row is all 0 are padding, which never leaves a client:
    there is no noise on them.

    Attributes
    ----------
    text : str
        The chain.
    norm : float
        The mean norm of a sample's smashed data.
    spread : float
        The standard deviation of their elements.
    """

    text: str
    norm: float
    spread: float

    @classmethod
    def fitted(cls, text: str, z: Tensor) -> Defence:
        """Return the defence for smashed data such as these, [N, ...].

        Raises
        ------
        ConfigError
            As `check_defence` does.
        """
        check_defence(text)
        norm = float(z.flatten(1).norm(dim=1).mean())
        return cls(text, norm or 1.0, float(z.std()) or 1.0)

    @property
    def random(self) -> bool:
        """Whether the same smashed data leave in another form each time."""
        return any(word in self.text for word in ("noise", "randtopk"))

    @property
    def said(self) -> str:
        """The chain with its numbers in the unit of the smashed data."""
        parts = []
        for step in self.text.split(","):
            found = _STEP.fullmatch(step)
            if found is None:
                parts.append(step)
            elif found[1] == "clip":
                parts.append(f"norm of a sample at most {float(found[2]) * self.norm:.3g}")
            else:
                parts.append(f"noise of standard deviation {float(found[2]) * self.spread:.3g}")
        return ", ".join(parts)

    def __call__(self, z: Tensor, generator: np.random.Generator) -> Tensor:
        """Return smashed data as the server gets them, float32 of the same shape.

        Parameters
        ----------
        z : Tensor
            float32, [N, ...].
        generator : numpy.random.Generator
            Of the noise, and of which samples share a mini-batch where values are drawn.
        """
        real = (z != 0).any(-1, keepdim=True) if z.dim() == 3 else torch.ones(())
        for step in self.text.split(","):
            found = _STEP.fullmatch(step)
            if found is not None and found[1] == "clip":
                most = float(found[2]) * self.norm
                norms = z.flatten(1).norm(dim=1).clamp_min(1e-30)
                z = z * (most / norms).clamp(max=1.0).reshape(-1, *[1] * (z.dim() - 1))
            elif found is not None:
                drawn = generator.standard_normal(z.shape, dtype=np.float32)
                z = z + float(found[2]) * self.spread * torch.from_numpy(drawn) * real
            elif step != PLAIN:
                order = torch.arange(len(z))
                if self.random:  # What randtopk draws follows from the mini-batch it is in.
                    order = torch.from_numpy(generator.permutation(len(z)))
                sent = _encoded(z.detach()[order], step)[order.argsort()]
                z = z + (sent - z).detach() if z.requires_grad else sent
        return z

    def seen(self, z: Tensor, generator: np.random.Generator, sightings: int) -> Tensor:
        """Return the mean of what the server gets of the same samples so often, [N, ...]."""
        often = sightings if self.random else 1
        found = self(z, generator)
        for _ in range(often - 1):
            found = found + self(z, generator)
        return found / often if often > 1 else found

    def postprocess(self, generator: np.random.Generator) -> Any:
        """Return what does the same to the replies of clients, for `simulate`."""

        def changed(reply: Reply) -> Reply:
            given: Any = reply
            if (z := getattr(given, "z", None)) is None:
                return reply
            found: Reply = replace(given, z=self(torch.from_numpy(z.copy()), generator).numpy())
            return found

        return None if self.text == PLAIN else changed


def _encoded(z: Tensor, name: str) -> Tensor:
    way = encoding_of(name)
    return torch.from_numpy(way.decode(way.encode(z.numpy(), "smashed")).copy())
