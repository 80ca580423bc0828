"""What NoPeek's term needs: mini-batches of a few samples, and inputs that have distances."""

from __future__ import annotations

from torch import Tensor

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError
from sfl_flower.privacy.dependence import FEWEST

__all__ = ["check_nopeek", "without_nopeek"]


def check_nopeek(config: RunConfig, settings: Settings, x: Tensor) -> None:
    """Refuse mini-batches and inputs of which no distance correlation tells anything.

    Parameters
    ----------
    config : RunConfig
        Says how many samples a mini-batch has.
    settings : Settings
        Of the method; without NoPeek nothing is refused.
    x : Tensor
        Inputs of the task, of any shape.

    Raises
    ------
    ConfigError
        If a mini-batch has fewer than `FEWEST` samples, or inputs are no floating-point numbers.
    """
    weight = vars(settings).get("nopeek", 0.0)
    if weight and config.batch_size < FEWEST:
        raise ConfigError(
            f"nopeek={weight:g} with batch_size={config.batch_size}: the distance correlation of "
            f"so few samples is the same whatever they are; set batch_size to at least {FEWEST} "
            "(32 says more), or nopeek=0."
        )
    if weight and not x.is_floating_point():
        raise ConfigError(
            f"nopeek={weight:g} with inputs of {x.dtype}: token ids have no distances; set "
            "nopeek=0, or give the task inputs of floating point."
        )


def without_nopeek(settings: Settings, samples: int) -> str:
    """Return why the term does nothing on a client, empty where it does.

    Parameters
    ----------
    settings : Settings
        Of the method.
    samples : int
        How many the client holds.
    """
    if not vars(settings).get("nopeek") or samples >= FEWEST:
        return ""
    return f"it holds fewer than {FEWEST} samples ({samples}); nopeek does nothing there."
