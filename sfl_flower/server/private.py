"""Options of differential privacy of scalars, and what does not go with it.

A client scales the scalars of each sample down to a norm before it sums them
(`sfl_flower.node.private`); noise is added by the clients, or by the server to what it journals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig, Settings
from sfl_flower.data import seeded_torch
from sfl_flower.data.seeding import has_secret
from sfl_flower.errors import ConfigError
from sfl_flower.options import Choice, Range
from sfl_flower.server.aggregate import find_aggregator
from sfl_flower.training.modes import kept_buffers

__all__ = ["PrivacySettings", "check_apart", "check_private"]


@dataclass(frozen=True)
class PrivacySettings(Settings):
    """How much the scalars tell of a sample (`docs/privacy.md`).

    Attributes
    ----------
    dp_clip : float
        C: the scalars of each sample that tell of a gradient of a larger norm are scaled down to
        it, before a mini-batch's are summed; 0: samples are not told apart.
    dp_noise : float
        σ: Gaussian noise on scalars, as a multiple of what one sample moves them at most; 0: none,
        or with dp_epsilon as much as that asks for.
    dp_epsilon : float
        The run ends before the round that would bring a sample's ε above it; 0: no limit.
    dp_delta : float
        δ at which ε is meant.
    dp_noise_by : {"client", "server"}
        Who adds the noise: each client all of its own, so that nobody else need be trusted, or the
        server, which then sees the scalars as they are.
    """

    dp_clip: Annotated[float, Range(0, 1e30)] = 0.0
    dp_noise: Annotated[float, Range(0, 1e9)] = 0.0
    dp_epsilon: Annotated[float, Range(0, 1e4)] = 0.0
    dp_delta: Annotated[float, Range(1e-30, 0.5)] = 1e-5
    dp_noise_by: Annotated[str, Choice(("client", "server"))] = "client"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dp_clip:
            return
        for name in ("dp_noise", "dp_epsilon"):
            if value := vars(self)[name]:
                raise ConfigError(
                    f"{name}={value:g} with dp_clip=0: noise hides a sample only where what it "
                    "tells is bounded; set dp_clip above 0, the norm of a sample's gradient."
                )

    @property
    def dp(self) -> bool:
        """Whether there is noise."""
        return bool(self.dp_noise or self.dp_epsilon)

    @property
    def central(self) -> bool:
        """Whether it is the server that adds it."""
        return self.dp and self.dp_noise_by == "server"

    def warnings(self) -> list[str]:
        """Return what to mind: a bound without noise, and noise that can be guessed."""
        found = super().warnings()
        if self.dp_clip and not self.dp:
            found.append(
                f"dp_clip={self.dp_clip:g} without dp_noise or dp_epsilon bounds what a sample "
                "tells, which is no differential privacy."
            )
        if self.central and not has_secret():
            found.append(
                "dp_noise_by=server without SFL_SECRET: the noise follows from the run's seed "
                "alone, and whoever guesses that takes it off again; set SFL_SECRET on the server."
            )
        return found


def check_private(config: RunConfig, settings: PrivacySettings, steps: int | None = 1) -> None:
    """Refuse what would tell of samples beside noised scalars, or make of the noise something else.

    Parameters
    ----------
    config, settings : RunConfig, PrivacySettings
        Of the run and of its method.
    steps : int, optional
        Local steps that a client takes along its scalars before all step by their mean; None where
        its own steps are what the server takes the mean of.

    Raises
    ------
    ConfigError
        With the option that is in the way.
    """
    own = vars(settings)
    wrong: list[tuple[str, str]] = []
    if settings.dp_clip and own.get("nopeek"):
        why = "is of a mini-batch and no sum over samples, so no sample's part is bounded; use 0"
        wrong.append((f"nopeek={own['nopeek']:g}", why))
    if settings.dp_clip and own.get("guide", "none") != "none":
        why = "is made of every client's smashed data without noise, and is sent to all; use none"
        wrong.append((f"guide={own['guide']}", why))
    if settings.dp and config.subspace_from == "clients":
        why = "asks clients for a sketch of their data without noise; use public or noise"
        wrong.append(("subspace_from=clients", why))
    if settings.central:
        if not find_aggregator(config.aggregator).linear:
            why = "is no weighted sum, so what a sample moves is not bounded; use mean"
            wrong.append((f"aggregator={config.aggregator}", why))
        if own.get("scale", "none") != "none":
            why = "divides by what all samples tell, before the noise; use none"
            wrong.append((f"scale={own['scale']}", why))
        if config.outlier_factor:
            why = "chooses replies by scalars without noise; use 0"
            wrong.append((f"outlier_factor={config.outlier_factor:g}", why))
        least = 2 * settings.dp_clip * math.sqrt(own["probes"])
        if own["scalar_limit"] < least:
            why = f"refuses replies by scalars without noise; use {least:.4g}, which none exceeds,"
            wrong.append((f"scalar_limit={own['scalar_limit']:g}", f"{why} or more"))
        if steps is None:
            raise ConfigError(
                "dp_noise_by=server: here clients step along their scalars themselves, before the "
                "server could add noise; use dp_noise_by=client."
            )
        if steps > 1:
            why = "lets clients step along scalars without noise; use 1"
            wrong.append((f"local_steps={steps}", why))
    for option, why in wrong:
        by = ", or dp_noise_by=client" if settings.central and "clients" not in option else ""
        raise ConfigError(f"dp_clip={settings.dp_clip:g} with {option}: that {why}{by}.")


def check_apart(
    settings: PrivacySettings,
    module: nn.Module,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    seed: int,
) -> None:
    """Refuse a clip where a sample's output depends on others of its mini-batch.

    Parameters
    ----------
    settings : PrivacySettings
        Without a clip nothing is refused.
    module : nn.Module
        What clients probe, in the mode of the run; it stays as it is.
    run : callable
        Runs it on inputs.
    x : Tensor
        Two inputs.
    seed : int
        Of dropout.

    Raises
    ------
    ConfigError
        If the first output is another beside a copy of the first input than beside the second.
    """
    if not settings.dp_clip:
        return
    found = []
    for inputs in (x, torch.cat([x[:1], x[:1]])):
        with torch.no_grad(), kept_buffers(module), seeded_torch("samples apart", seed):
            found.append(run(inputs)[0].double())
    with_another, with_itself = found
    if not torch.allclose(with_another, with_itself, rtol=1e-3, atol=1e-6):
        raise ConfigError(
            "dp_clip bounds what each sample tells, but in what clients probe an output depends on "
            "other samples of the mini-batch (BatchNorm in train mode); set client_mode=eval."
        )
