"""What methods with probes have alike: their options, and what is said of scalars and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.options import Choice, Range
from sfl_flower.server.label_privacy import LabelSettings
from sfl_flower.server.subspace import smaller_choice
from sfl_flower.server.tally import Tally
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import kept_buffers
from sfl_flower.zo import ESTIMATORS, LAWS, SCALES, ParameterVector, Probing
from sfl_flower.zo.beside import Beside
from sfl_flower.zo.probing import MOST_NOPEEK, MOST_PROBES, MU_RANGE

__all__ = [
    "HOPELESS",
    "DirectionSettings",
    "EstimateSettings",
    "Noise",
    "ProbeLength",
    "Probes",
    "ProbingSettings",
    "check_dcor",
    "check_estimator",
    "check_scalars",
    "check_stack",
    "check_whole",
    "note_zeros",
    "round_noise",
]

_log = getLogger("flwr")
HOPELESS = 500
"""d/P above which the noise of zeroth order is warned of.

On Fashion-MNIST, from scratch, d = 5 056 learns with 160 directions an update (d/P = 32) and with
40 (126); d = 10 186 with 5 (2 037) hardly does.  This is half way, by ratio.
"""


Probes = Annotated[int, Range(1, MOST_PROBES)]
ProbeLength = Annotated[float, Range(*MU_RANGE)]


@dataclass(frozen=True)
class DirectionSettings(LabelSettings):
    """Options of every method that probes.

    Attributes
    ----------
    mu : float
        μ, the probe length.
    direction : {"rademacher", "gaussian", "sphere", "rank_one"}
        Direction law; each has E[u uᵀ] = I.
    walk : bool
        The control of forward-only learning: scalars that clients step by keep their size, their
        signs are drawn. Steps are as long and tell nothing of the gradient.
    """

    mu: ProbeLength = 1e-3
    direction: Annotated[str, Choice(LAWS)] = "rademacher"
    walk: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.probing()  # refuses its own settings

    def probing(self) -> Probing:
        """Return how a mini-batch is probed: once, on both sides of the anchor."""
        return Probing(1, self.direction, self.mu, "central")


@dataclass(frozen=True)
class ProbingSettings(DirectionSettings):
    """Options of methods that average probes by an estimator of choice.

    Attributes
    ----------
    probes : int
        P, probes of a mini-batch.
    estimator : str
        What is computed along each direction, by name: `sfl_flower.zo.ESTIMATORS`.
    """

    probes: Probes = 1
    estimator: Annotated[str, Choice(ESTIMATORS)] = "forward"

    def probing(self) -> Probing:
        """Return how a mini-batch is probed."""
        return Probing(self.probes, self.direction, self.mu, self.estimator)

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample: the anchor's and its probes'."""
        return 1 + self.probes * self.probing().rule.forwards, 0


@dataclass(frozen=True)
class EstimateSettings(ProbingSettings):
    """Options of methods that make a step of the scalars of each mini-batch.

    Attributes
    ----------
    clip_norm : float
        Scalars of a mini-batch that tell of a gradient of a larger norm are scaled down to it
        (`sfl_flower.zo.clip_scalars`); 0: no clipping. With `scale` it is the norm after that.
    scale : {"none", "spread"}
        Whether the scalars of a mini-batch are divided by their standard deviation over its probes,
        at least 2 (FZOO), so that a step has one size whatever the gradient's.
    cone : float
        Cosine of the angle between probes and the momentum of what was found (ConMeZO), which
        decays by `client_momentum` a step; 0: probes know nothing of it.
    stack : int
        Probes of a mini-batch that run in one forward, of direction=rank_one alone: faster, and a
        forward of S probes holds the activations of S mini-batches.
    nopeek : float
        α: what a probe measures is the loss and α times the distance correlation of the
        mini-batch's inputs with its smashed data (NoPeek), so that these tell less of the inputs;
        in units of the loss, and 0 is off. `clip_norm` and `scalar_limit` are of both together:
        where a clip binds, a larger α takes of the loss's share of a step of one length.
    """

    clip_norm: Annotated[float, Range(0, 1e30)] = 0.0
    scale: Annotated[str, Choice(SCALES)] = "none"
    cone: Annotated[float, Range(0, 0.999)] = 0.0
    stack: Probes = 1
    nopeek: Annotated[float, Range(0, MOST_NOPEEK)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale == "spread" and self.probes < 2:
            raise ConfigError(
                "scale=spread with probes=1: one scalar has no spread; set probes to at least 2, "
                "or scale=none (clip_norm bounds a step with one probe too)."
            )
        if self.cone and self.stack > 1:
            raise ConfigError(
                f"stack={self.stack} with cone={self.cone:g}: the momentum has no factors, so its "
                "probes cannot run in one forward; set stack=1 or cone=0."
            )

    def probing(self) -> Probing:
        """Return how a mini-batch is probed."""
        return replace(super().probing(), stack=self.stack, nopeek=self.nopeek)


@dataclass(frozen=True)
class Noise:
    """What decides the noise of a zeroth-order gradient estimate.

    Attributes
    ----------
    size : int
        d, the parameters that the directions move.
    directions : int
        P, the directions whose estimates are averaged in an update.
    made_of : str
        What P is, in words.
    remedies : tuple of str
        What the method has besides probes and fewer parameters.
    rest : float
        What the estimate counts beside a guide, which is measured and has no noise; 1 without one.
    parts : str
        What has scalars of channels; of its parameters d counts one row. Empty for none.
    alone : str
        The choice that trains only such parameters, few of them.
    """

    size: int
    directions: int
    made_of: str
    remedies: tuple[str, ...] = ()
    rest: float = 1.0
    parts: str = ""
    alone: str = ""

    @property
    def ratio(self) -> float:
        """d/P: the variance over ||g||², which is the clients' mean where directions are own."""
        return self.rest**2 * self.size / self.directions

    def warning(self, task: SplitTask, config: RunConfig) -> str:
        """Return the warning, with a choice of parameters that is none; empty if d/P is low."""
        if self.ratio <= HOPELESS:
            return ""
        fewer = f"fewer trained parameters (task.trained: {self._choice(task, config)})"
        remedies = ", ".join(("more probes", *self.remedies, fewer))
        apart = f" (of {self.parts}, which has scalars of channels, a row)" if self.parts else ""
        what = "d/P" if self.rest == 1 else "guide_rest^2 d/P"
        return (
            f"Zeroth order is very noisy here: d = {self.size} parameters{apart} over P = "
            f"{self.directions} directions an update ({self.made_of}) is {what} = "
            f"{self.ratio:.0f}; the variance of an estimate is about {what} times ||g||^2, so its "
            f"error is about {self.ratio**0.5:.0f} times the gradient, and steps must be smaller "
            f"and more by {what}. From scratch hardly anything is learned above {what} = "
            f"{HOPELESS}. Use {remedies}, or start from pre-trained weights."
        )

    def _choice(self, task: SplitTask, config: RunConfig) -> str:
        """Return a choice of parameters that is not too noisy, in words."""
        if self.parts:  # fewer of its rows would change nothing
            return self.alone or f"{self.parts} alone"
        excess = self.size - HOPELESS * self.directions / self.rest**2
        return smaller_choice(task, config.model_seed, excess) or "none of the usual is enough"


def round_noise(size: int, probes: int, minibatches: int, clients: int, shared: bool) -> Noise:
    """Return the noise of a round whose clients probe along own directions, or along the same.

    Parameters
    ----------
    size : int
        d, the parameters among which the noise arises.
    probes, minibatches, clients : int
        Of a mini-batch, of a client in a round, of a round.
    shared : bool
        Whether the directions are the same for all clients.
    """
    count, words = probes * minibatches, f"{probes} probes"
    if minibatches > 1:
        words += f" x {minibatches} mini-batches"
    if shared:
        return Noise(size, count, f"{words}, shared by the clients", ("directions=own",))
    return Noise(size, count * clients, f"{words} x {clients} clients", ("minibatches",))


def check_scalars(scalars: np.ndarray, probing: Probing, limit: float) -> None:
    """Raise `WireError` if a scalar tells of a derivative above the method's `scalar_limit`."""
    largest = float(np.abs(scalars).max()) / probing.unit
    if largest > limit:
        what = "|v| / mu" if probing.unit == probing.mu else "|v|"
        told = f"a scalar gives {what} = {largest:.3g}, more than scalar-limit = {limit:g}"
        if probing.nopeek:
            told += f"; the term of nopeek = {probing.nopeek:g} is in it: lower that, or raise this"
        raise WireError(f"{told}.")


def check_dcor(dcor: float | None, probing: Probing) -> None:
    """Raise `WireError` if a reply lacks a distance correlation that was asked for, or has one."""
    if (dcor is None) == bool(probing.nopeek):
        has, asked = ("no", "one was") if dcor is None else ("a", "none was")
        raise WireError(f"it has {has} distance correlation, and {asked} asked for.")


def check_estimator(
    probing: Probing,
    module: nn.Module,
    evaluate: Callable[[], Tensor],
    names: Sequence[str] | None = None,
) -> None:
    """Refuse a module that the estimator cannot differentiate; module and buffers stay as they are.

    Parameters
    ----------
    probing : Probing
        Names the estimator.
    module : nn.Module
        What clients probe.
    evaluate : callable
        Runs it on a few samples.
    names : sequence of str, optional
        Of the parameters that move; all trainable ones by default.

    Raises
    ------
    ConfigError
        See `Estimator.check`.
    """
    with torch.no_grad(), kept_buffers(module):
        probing.rule.check(evaluate, module, ParameterVector(module, names))


def check_whole(config: RunConfig, settings: Settings) -> None:
    """Refuse probes that run in one forward beside mini-batches that do not.

    Raises
    ------
    ConfigError
        If `stack` is above 1 and `micro_batch` not "all".
    """
    stack = getattr(settings, "stack", 1)
    if stack > 1 and config.micro_batch != "all":
        raise ConfigError(
            f"stack={stack} with micro_batch={config.micro_batch}: one runs several mini-batches "
            "at one time, the other less than one; leave stack at 1 or micro_batch at all."
        )


def check_stack(
    probing: Probing,
    module: nn.Module,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    names: Sequence[str] | None = None,
) -> None:
    """Warn where probes are to run in one forward and the module does not let them.

    Parameters
    ----------
    probing, module, names
        As for `check_estimator`.
    run : callable
        Runs the module on inputs.
    x : Tensor
        A few of them.
    """
    if probing.stack == 1:
        return
    with kept_buffers(module):
        if Beside.open(module, ParameterVector(module, names), run, x) is None:
            _log.warning(
                "stack=%d has no effect: a trained parameter is not of a linear layer, "
                "convolution, embedding or norm, or samples of a batch are mixed (BatchNorm in "
                "train mode, dropout); every probe has a forward of its own.",
                probing.stack,
            )


def note_zeros(tally: Tally, scalars: Iterable[np.ndarray], probing: Probing) -> None:
    """Note in a round that every scalar of its cohort was exactly 0, so that nothing moved."""
    parts = [part for part in scalars if part.size]
    if not parts or any(part.any() for part in parts):
        return
    says = "Every scalar of every client is exactly 0, so zeroth order moves nothing"
    if probing.unit == probing.mu:
        says += (
            f": a probe of mu = {probing.mu:g} is lost in the rounding of float32; raise mu "
            "(1e-3 is usual)"
        )
    tally.note(f"{says}. If it stays so, the loss does not depend on what clients train.")
