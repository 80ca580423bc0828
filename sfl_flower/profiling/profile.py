"""`profile`: what every cut of a model asks of a client, and which to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, Method, find_method
from sfl_flower.options import check_range
from sfl_flower.profiling.advice import advise
from sfl_flower.profiling.costs import Cost, Setting, method_costs
from sfl_flower.profiling.cuts import WHOLE, CutProfile, profile_cuts
from sfl_flower.profiling.leakage import Leakage
from sfl_flower.profiling.learning import learning
from sfl_flower.profiling.progress import Learning
from sfl_flower.split import Auto, read_subspace
from sfl_flower.task import SplitTask

__all__ = ["Profile", "Shown", "batch_like", "profile"]

Shown = Callable[[SplitTask, Sequence[str], Callable[[str], None] | None], Mapping[str, float]]
"""Gives how little a decoder makes of the smashed data of each cut."""


@dataclass(frozen=True)
class Profile:
    """The cuts of a model side by side.

    Attributes
    ----------
    name : str
        Of the task or the model's class.
    setting : Setting
        What the costs are for.
    cuts : tuple of CutProfile
        Each cut, and the whole model as the last.
    costs : dict of str to dict of str to Cost
        By cut and method.
    client_memory : int or None
        Bytes that a client has.
    advice : tuple of str
        What fits, what to take, and why not the next best, in sentences.
    learning : Learning or None
        What forwards will learn, where it was asked for.
    leakage : Leakage or None
        What smashed data show of inputs, where it was asked for.
    """

    name: str
    setting: Setting
    cuts: tuple[CutProfile, ...]
    costs: dict[str, dict[str, Cost]]
    client_memory: int | None
    advice: tuple[str, ...]
    learning: Learning | None = None
    leakage: Leakage | None = None


def profile(
    subject: SplitTask | nn.Module,
    x: Tensor | None = None,
    *,
    batch_size: int = 32,
    cuts: Sequence[str] | None = None,
    client_memory: int | None = None,
    bandwidth: float = 10e6,
    probes: int = 8,
    sampled: int = 5,
    local_steps: int = 1,
    slowdown: float = 1.0,
    estimator: str = "forward",
    smashed: str = "float32",
    gradients: str = "float32",
    trained: str = "",
    seconds: float = 50.0,
    methods: Sequence[str | Method] = tuple(METHODS),
    learn: Sequence[str] | None = None,
    shown: Shown | None = None,
    least_error: float = 0.0,
    watch: Callable[[str], None] | None = None,
) -> Profile:
    """Profile the cuts of a task's model, or of a model on a batch.

    Parameters
    ----------
    subject : SplitTask or nn.Module
        A task gives model and batch; a model needs `x`.
    x : Tensor, optional
        A batch of inputs [N, ...]; repeated or cut to `batch_size`.
    batch_size : int
        Samples of a client's mini-batch.
    cuts : sequence of str, optional
        The cuts; every legal one by default.
    client_memory : int, optional
        Bytes that a client has for its half, parameters included.
    bandwidth : float
        Bits per second between client and server, each way.
    probes, sampled, local_steps : int
        As the methods' settings: P, clients of a round, and mini-batches between weights.
    slowdown : float
        How many times slower than this machine a client computes.
    estimator : str
        Of the zeroth-order methods, as their setting.
    smashed, gradients : str
        How smashed data and cut gradients travel, as the run's settings.
    trained : str
        Which client parameters are trained, as of `SplitTask`; by default those of the task, or
        all.
    seconds : float
        For how long to measure peaks at the whole batch, the time that predicting takes included;
        the others stay predicted.
    methods : sequence of str or Method
        Which methods are costed and advised, as for `simulate`.
    learn : sequence of str, optional
        Choices of trained parameters of which to say what forwards will learn, see
        `sfl_flower.profiling.learning`; empty for a usual list. A task is needed.
    shown : callable, optional
        Gives for a task, cuts and `watch` what a decoder leaves of a guess's error at each cut,
        `sfl_flower.attacks.shown.error_left`. A task is needed, whose inputs are numbers.
    least_error : float
        With `shown`: advise cuts alone at which that is at least so much; 0 advises all.
    watch : callable, optional
        Called with each cut's name before it is profiled; the whole model comes first.

    Returns
    -------
    Profile
        Costs of each cut and method, and a recommendation.

    Raises
    ------
    ConfigError
        A number is out of its range, no method fits into `client_memory` at any cut, or `trained`
        is chosen only when a run begins.
    CutError
        The model cannot be cut, or not there.

    Examples
    --------
    >>> from sfl_flower import profile
    >>> from sfl_flower.tasks import load_task
    >>> found = profile(load_task("digits"), batch_size=8, bandwidth=1e6)
    >>> [cut.at for cut in found.cuts][-1]
    '(whole model)'
    """
    given = Setting(
        batch_size,
        bandwidth,
        probes,
        sampled,
        local_steps,
        slowdown,
        estimator=estimator,
        smashed=smashed,
        gradients=gradients,
    )
    if isinstance(subject, SplitTask):
        name, model = subject.name, subject.whole(0)
        x = subject.batch(subject.samples("test"), slice(0, batch_size))[0]
    else:
        name, model = type(subject).__name__, subject
    if x is None:
        raise ConfigError("A model is profiled on a batch; give x, a tensor [N, ...].")
    x = x.repeat(-(-batch_size // max(1, len(x))), *[1] * (x.dim() - 1))[:batch_size]
    own = trained or (subject.trained if isinstance(subject, SplitTask) else "all")
    if isinstance(read_subspace(own), Auto):
        raise ConfigError(
            f"trained is '{own}', which a server chooses when a run begins; name layers and "
            "directions here, or ask for it with learn= (--learn)."
        )
    if learn is not None and not isinstance(subject, SplitTask):
        raise ConfigError("learn needs labels and a loss; profile a task, not a model.")
    check_range("leakage", least_error, 0.0, 1e3)
    if shown is not None and not isinstance(subject, SplitTask):
        raise ConfigError("leakage needs samples to attack; profile a task, not a model.")
    rows = profile_cuts(model, x, cuts, seconds, own, watch)
    shape = rows[-1].smashed_shape
    setting = replace(given, outputs=shape[-1] if shape else 1, everywhere=len(shape) == 2)
    chosen = [find_method(named) for named in methods]
    costs = {row.at: method_costs(row, setting, chosen) for row in rows}
    leak, among = None, rows
    if shown is not None and isinstance(subject, SplitTask):
        places = [row.at for row in rows if row.at != WHOLE]
        leak = Leakage(shown(subject, places, watch), least_error)
        among = leak.allowed(rows)
    advice = advise(among, costs, setting, client_memory, chosen)
    if leak is not None:
        advice += leak.advice()
    found = None
    if learn is not None and isinstance(subject, SplitTask):
        found = learning(subject, cuts, learn, probes, sampled, 0, estimator, watch)
        advice += found.advice()
    return Profile(name, setting, tuple(rows), costs, client_memory, advice, found, leak)


def batch_like(shape: Sequence[int], size: int, tokens: int = 0, seed: int = 0) -> Tensor:
    """Return a random batch: floats [size, *shape], or ids below `tokens` where that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        return torch.randint(1, tokens, (size, *shape), generator=generator)
    return torch.randn(size, *shape, generator=generator)
