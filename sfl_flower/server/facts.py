"""What a method is, for whoever sets methods side by side without running them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfl_flower.config import ENCODED, RunConfig
from sfl_flower.errors import ConfigError

__all__ = ["BACKPROP", "Facts"]

BACKPROP = ("server_precision", "server_compile")
"""The settings that say how the server half runs where it is trained by backprop."""


@dataclass(frozen=True)
class Facts:
    """What a method is.

    Attributes
    ----------
    does : str
        What it does, in a few words.
    client : {"first order", "zeroth order", "nothing"}
        How clients learn.
    server : {"first order", "zeroth order", "averages"}
        How the server half learns; "averages" where the server trains nothing itself.
    head : bool
        Whether there is an auxiliary head at the cut.
    journal : bool
        Whether clients follow a journal of keys and scalars.
    gradients : bool
        Whether clients get λ, the gradient at the cut.
    labels : bool
        Whether labels reach the server.
    whole : bool
        Whether clients hold the whole model instead of the client half.
    server_lr : bool
        Whether the run's server optimiser changes what the method does.
    """

    does: str
    client: Literal["first order", "zeroth order", "nothing"]
    server: Literal["first order", "zeroth order", "averages"]
    head: bool = False
    journal: bool = False
    gradients: bool = False
    labels: bool = True
    whole: bool = False
    server_lr: bool = True

    @property
    def backprop(self) -> bool:
        """Whether the server half is trained by backprop."""
        return self.server == "first order"

    @property
    def rank(self) -> int:
        """How little of the model learns by backprop, which learns more from a sample: 0 to 2."""
        if self.client == "first order":
            return 0
        return 1 if self.backprop else 2

    def check_config(self, method: str, config: RunConfig) -> None:
        """Refuse to say how what crosses the cut travels, or how the server half runs, in vain.

        Raises
        ------
        ConfigError
            If clients hold the whole model, or the server runs no backprop, and the configuration
            says it.
        """
        for name in ENCODED if self.whole else ():
            if (value := getattr(config, name)) != getattr(RunConfig, name):
                raise ConfigError(
                    f"{name} is '{value}' with method '{method}', whose clients hold the whole "
                    "model: there is no cut and nothing that travels so; leave it out."
                )
        for name in () if self.backprop else BACKPROP:
            if (value := getattr(config, name)) != getattr(RunConfig, name):
                raise ConfigError(
                    f"{name} is {value!r} with method '{method}', whose server runs no backprop: "
                    f"it must be {getattr(RunConfig, name)!r}; leave it out."
                )

    def precision(self, config: RunConfig) -> str | None:
        """Return what the server half multiplies in; None where it runs no backprop."""
        return config.server_precision if self.backprop else None
