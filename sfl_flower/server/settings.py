"""Options that several methods have, each declared once: a method's settings inherit them.

Each class adds to the one before: `ClientRateSettings` the client's rate, `ClientOptimizerSettings`
an optimiser, `LocalStepsSettings` steps that the client takes on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfl_flower.data import steps_per_epoch
from sfl_flower.options import (
    Choice,
    ClientMode,
    ClientState,
    Decay,
    Momentum,
    Range,
    Rate,
    Steps,
    choices,
)
from sfl_flower.server.label_privacy import LabelSettings
from sfl_flower.training.optim import FIRST_ORDER, optimizer_text
from sfl_flower.training.schedules import SCHEDULES, schedule_text, scheduled
from sfl_flower.zo import OPTIMIZERS, OptimizerSpec

__all__ = [
    "ClientOptimizerSettings",
    "ClientRateSettings",
    "LocalStepsSettings",
    "Replayable",
    "Schedule",
    "Warmup",
]

Schedule = Annotated[str, Choice(SCHEDULES)]
Warmup = Annotated[float, Range(0)]
Replayable = Annotated[str, Choice(OPTIMIZERS)]
"""What `client_optimizer` may be in a method of zeroth order."""


@dataclass(frozen=True)
class ClientRateSettings(LabelSettings):
    """How the client's learning rate goes over the rounds of a run.

    Attributes
    ----------
    client_lr : float
        Learning rate of what clients train.
    client_lr_schedule : {"constant", "linear", "cosine"}
        How client_lr goes over the rounds; the last two end at 0.
    client_lr_warmup : float
        First rounds over which client_lr rises linearly; below 1 it is a share of all rounds.
    """

    client_lr: Rate = 0.05
    client_lr_schedule: Schedule = "constant"
    client_lr_warmup: Warmup = 0.0

    @property
    def client_schedule(self) -> str:
        """How client_lr goes over the rounds, as words."""
        return schedule_text(self.client_lr_schedule, self.client_lr_warmup)

    def client_rate(self, round: int, rounds: int) -> float:
        """Return the client's learning rate in a round of a run of so many rounds."""
        schedule, warmup = self.client_lr_schedule, self.client_lr_warmup
        return scheduled(schedule, self.client_lr, round, rounds, warmup)


@dataclass(frozen=True)
class ClientOptimizerSettings(ClientRateSettings):
    """The optimiser of what the client trains, beside its rate.

    Attributes
    ----------
    client_optimizer : {"sgd", "adam", "adamw"}
        Optimiser of what clients train.
    client_momentum : float
        Momentum of the client optimiser, where it is sgd; of the replayable ones, momentum.
    client_weight_decay : float
        Weight decay of the client optimiser.
    """

    client_optimizer: Annotated[str, Choice(FIRST_ORDER)] = "sgd"
    client_momentum: Momentum = 0.9
    client_weight_decay: Decay = 0.0

    def optimizer_text(self, round: int, rounds: int) -> str:
        """Return the client optimiser of a round as the text that travels."""
        rate = self.client_rate(round, rounds)
        return optimizer_text(
            self.client_optimizer, rate, self.client_momentum, self.client_weight_decay
        )

    def spec(self) -> OptimizerSpec:
        """Return the client optimiser, one of the replayable ones, without its rate."""
        return OptimizerSpec(
            self.client_optimizer,
            momentum=self.client_momentum,
            weight_decay=self.client_weight_decay,
        )


@dataclass(frozen=True)
class LocalStepsSettings(ClientOptimizerSettings):
    """Local steps of a client on its own, beside the optimiser that takes them.

    Attributes
    ----------
    local_steps : int
        h, mini-batches per client and round; 0 is one epoch of the client's own samples, whose
        last mini-batch may be short (one sample that is left joins the mini-batch before it).
    client_momentum : float
        Momentum of the client optimiser; none by default, for it says nothing in one fresh step.
    client_state : {"fresh", "kept"}
        Whether the client optimiser's state starts anew each round or stays on each client.
    client_mode : {"as_built", "eval"}
        Mode of the client half, or of the whole model where there is no cut: as the task built it,
        or eval. An auxiliary head stays as it was built.
    """

    local_steps: Steps = 1
    client_momentum: Momentum = 0.0
    client_state: ClientState = "fresh"
    client_mode: ClientMode = "as_built"

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the mini-batches that a client with so many samples runs in a round."""
        return self.local_steps or steps_per_epoch(samples, batch_size)

    @property
    def keeps_client_state(self) -> bool:
        """Whether clients keep their optimiser's state."""
        return self.client_state == "kept"

    def warnings(self) -> list[str]:
        """Return what to mind: an optimiser that begins anew at each step is another one."""
        name, found = self.client_optimizer, super().warnings()
        if self.client_state == "kept" or self.local_steps != 1 or not self.client_lr:
            return found
        # Among the replayable optimisers momentum has a name of its own.
        named = "momentum" in choices(type(self), "client_optimizer")
        momentum = name == ("momentum" if named else "sgd")
        if name in ("adam", "adamw", "radazo"):
            effect = (
                f"{name} moves every parameter by client_lr whatever the size of its gradient (a "
                "sign step)"
            )
            other = "client_optimizer=sgd"
        elif momentum and self.client_momentum:
            effect = (
                f"client_momentum={self.client_momentum:g} has no effect and the step is plain SGD"
            )
            other = "client_momentum=0"
        elif name == "hiso":
            effect = "nothing is learned of the curvature and the step is plain SGD"
            other = "client_optimizer=sgd"
        else:
            return found
        warning = (
            "client_state=fresh with local_steps=1: the client optimiser begins anew at every "
            f"step, so {effect}; set client_state=kept or more local_steps, or {other}."
        )
        return [*found, warning]
