"""Options of methods with guides, and the guide of a method whose clients have their own loss.

Such a method (HERON-SFL) sends no λ.  But the server holds the auxiliary head, and the smashed data
and labels that clients sent: it has the λ of their loss itself.  What came in one round makes the
guide of the next, at the client half and the head that the next one begins with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated, Self

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError, TrainingError, WireError
from sfl_flower.options import Choice, Momentum, Range
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.guide import GUIDES, GuideMaker, guide_maker
from sfl_flower.server.guide_forms import FORMS
from sfl_flower.server.probing import EstimateSettings, Noise
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from sfl_flower.server.trainer import Trainer
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import kept_buffers
from sfl_flower.wire.local import LocalReply
from sfl_flower.zo import Guide, ParameterVector
from sfl_flower.zo.law import Shapes

__all__ = ["GuideSettings", "NextGuide", "check_guide", "check_local_guide"]

_NAME = "guide"


@dataclass(frozen=True)
class GuideSettings(EstimateSettings):
    """Options of methods whose clients may probe along a guide of the server.

    Attributes
    ----------
    guide : {"none", "public", "noise"}
        One more direction, the same for the clients of a round, which the server makes of λ at
        their smashed data and of the task's public samples, or of inputs of noise.
    guide_rest : float
        With a guide: what the part of the estimate off the guide counts; 1 leaves it unbiased.
    guide_samples : int
        Public samples that a round's guide is made of, drawn anew each round; 0: all of them.
    guide_form : {"gradient", "orthogonal"}
        What a guide lies towards: the gradient of the public samples, or that with the singular
        values of each matrix made equal (`sfl_flower.server.guide_forms`).
    guide_momentum : float
        m: a guide is made of m times what that of the round before was made of, and 1 - m times the
        gradient of its own round.
    """

    guide: Annotated[str, Choice(GUIDES)] = "none"
    guide_rest: Annotated[float, Range(0, 1)] = 1.0
    guide_samples: Annotated[int, Range(0)] = 0
    guide_form: Annotated[str, Choice(tuple(FORMS))] = "gradient"
    guide_momentum: Momentum = 0.0

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample, that along a guide among them."""
        forwards, backprops = super().client_passes
        return forwards + (self.guide != "none") * self.probing().rule.forwards, backprops

    def guide_maker(
        self, task: SplitTask, seed: int, half: nn.Module, vector: ParameterVector
    ) -> GuideMaker | None:
        """Return what makes the guides of a run, as `sfl_flower.server.guide.guide_maker`."""
        own = (self.guide_samples, self.guide_form, self.guide_momentum)
        return guide_maker(self.guide, task, seed, half, vector, *own)

    def beside_guide(self, noise: Noise) -> Noise:
        """Return the noise of an estimate of which a guide, if there is one, has none."""
        if self.guide == "none":
            return noise
        remedies = ("a lower guide_rest", *noise.remedies)
        return replace(noise, remedies=remedies, rest=self.guide_rest)


class NextGuide:
    """Makes the guide of the next round from what clients sent in this one, and keeps it.

    Parameters
    ----------
    maker : GuideMaker or None
        None for no guides.
    head : Trainer or None
        The auxiliary head; None where the server does not train it, and then there is no maker.
    mean : str
        How clients count: `client_weight`.

    Attributes
    ----------
    guide : Guide or None
        That of the next round; None before the first.
    """

    def __init__(self, maker: GuideMaker | None, head: Trainer | None, mean: str) -> None:
        self._maker, self._head, self._mean = maker, head, mean
        self.guide: Guide | None = None

    @classmethod
    def of(
        cls,
        settings: GuideSettings,
        task: SplitTask,
        config: RunConfig,
        half: nn.Module,
        vector: ParameterVector,
        head: Trainer | None,
    ) -> Self:
        """Return what makes the guides of a run.

        Parameters
        ----------
        settings, task, config : GuideSettings, SplitTask, RunConfig
            Of the run.
        half, vector : nn.Module, ParameterVector
            The client half and its trained parameters.
        head : Trainer or None
            The auxiliary head.

        Raises
        ------
        ConfigError
            As `guide_maker`.
        """
        maker = settings.guide_maker(task, config.seed, half, vector)
        return cls(maker, head, config.mean)

    def make(
        self, round: int, replies: Mapping[Member, LocalReply], every: int, tally: Tally
    ) -> None:
        """Make the guide at the client half and the head as they are now.

        Parameters
        ----------
        round : int
            That for which it is made.
        replies : Mapping[Member, LocalReply]
            Those that were used. Without any the guide stays, for so do client half and head.
        every : int
            k: their smashed data are of every k-th step.
        tally : Tally
            Is told of replies from which the head has no λ.
        """
        if self._maker is not None and self._head is not None and replies:
            answers = self._answers(self._head, replies, every, tally)
            self.guide = self._maker.guide(round, answers)

    def _answers(
        self, head: Trainer, replies: Mapping[Member, LocalReply], every: int, tally: Tally
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Yield of each client its smashed data, their λ and its weight."""
        for member, reply in replies.items():
            steps, parts = count(0, every), []
            try:
                with kept_buffers(head.module):
                    for z, y in reply.batches():
                        draw = (reply.round, member.partition, next(steps))
                        share = np.float32(len(y) / len(reply.y))  # λ of the client's mean loss
                        parts.append(share * head.gradients(z, y, draw).lam)
            except WireError as error:
                tally.note(f"The guide does without client {member.partition}: {error}")
                continue
            yield reply.z, np.concatenate(parts), client_weight(self._mean, reply.samples)

    def tensors(self) -> dict[str, Tensor]:
        """Return the guide for a checkpoint, its bytes as uint8, and what its maker keeps."""
        kept = {} if self._maker is None else self._maker.tensors()
        if self.guide is None:
            return kept
        return kept | {_NAME: torch.frombuffer(bytearray(self.guide.encode()), dtype=torch.uint8)}

    def load_tensors(self, tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
        """Put back what `tensors` gave; other names are passed over.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Of a checkpoint.
        shapes : tuple of tuple of int
            Of the tensors that a guide is a direction over.

        Raises
        ------
        TrainingError
            If it is one over others.
        """
        self.guide = None
        if self._maker is not None:
            self._maker.load_tensors(tensors)
        if _NAME in tensors:
            self.guide = Guide.decode(tensors[_NAME].cpu().numpy().tobytes())
            if not self.guide.fits(shapes):
                raise TrainingError(
                    "The checkpoint's guide is a direction over other parameters than this run "
                    "trains; resume with the task and settings that it was written with."
                )


def check_guide(settings: GuideSettings) -> None:
    """Refuse settings that do not go together.

    Parameters
    ----------
    settings : GuideSettings
        Options of guides and probes.

    Raises
    ------
    ConfigError
        A guide with a cone, or what is asked of a guide without one.
    """
    if settings.guide == "none":
        for name in ("guide_rest", "guide_samples", "guide_form", "guide_momentum"):
            value, default = getattr(settings, name), getattr(GuideSettings, name)
            if value != default:
                raise ConfigError(
                    f"{name} is {value} without a guide; leave it out or set guide to public or "
                    "noise."
                )
    elif settings.cone:
        raise ConfigError(
            f"guide is '{settings.guide}' with cone {settings.cone:g}: what is off a guide is "
            "known of probes whose mean is 0, and those of a cone lean towards the momentum; set "
            "cone to 0 or guide to none."
        )


def check_local_guide(settings: GuideSettings, head_trainer: str) -> None:
    """Refuse what `check_guide` does, and a guide over a head that clients move.

    Parameters
    ----------
    settings : GuideSettings
        Options of guides and probes.
    head_trainer : str
        Who trains the auxiliary head.

    Raises
    ------
    ConfigError
        With the remedy.
    """
    check_guide(settings)
    if settings.guide != "none" and head_trainer != "server":
        raise ConfigError(
            f"guide is '{settings.guide}' with head_trainer={head_trainer}: a guide is a direction "
            "over the client half, and these clients move the head with it; set head_trainer to "
            "server or guide to none."
        )
