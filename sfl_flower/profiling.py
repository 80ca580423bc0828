"""`profile`: what every cut of a model asks of a client, and which to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfl_flower.costs import Cost, Setting, method_costs
from sfl_flower.errors import ConfigError
from sfl_flower.report.table import human_bytes
from sfl_flower.split.profile import WHOLE, CutProfile, profile_cuts
from sfl_flower.task import SplitTask

__all__ = ["Profile", "advise", "profile"]

FIRST_ORDER, ZEROTH_ORDER = "splitfed_v2", "ho_sfl"
"""The methods that a recommendation is about, one of each kind."""


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
        What to take, and why, in sentences.
    """

    name: str
    setting: Setting
    cuts: tuple[CutProfile, ...]
    costs: dict[str, dict[str, Cost]]
    client_memory: int | None
    advice: tuple[str, ...]


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
    trained: str = "",
    seconds: float = 20.0,
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
    trained : str
        Which client parameters are trained, as of `SplitTask`; by default those of the task, or
        all.
    seconds : float
        How long to measure peaks at the whole batch; the others are predicted.
    watch : callable, optional
        Called with each cut's name before it is profiled.

    Returns
    -------
    Profile
        Costs of each cut and method, and a recommendation.

    Raises
    ------
    ConfigError
        A number is out of its range, or no method at any cut fits into `client_memory`.
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
    given = Setting(batch_size, bandwidth, probes, sampled, local_steps, slowdown)
    if isinstance(subject, SplitTask):
        name, model = subject.name, subject.whole(0)
        x = subject.batch(subject.samples("test"), slice(0, batch_size))[0]
    else:
        name, model = type(subject).__name__, subject
    if x is None:
        raise ConfigError("A model is profiled on a batch; give x, a tensor [N, ...].")
    x = x.repeat(-(-batch_size // max(1, len(x))), *[1] * (x.dim() - 1))[:batch_size]
    own = subject.trained if isinstance(subject, SplitTask) else "all"
    rows = profile_cuts(model, x, cuts, seconds, trained or own, watch)
    outputs = rows[-1].smashed_shape[-1] if rows[-1].smashed_shape else 1
    setting = replace(given, outputs=outputs)
    costs = {row.at: method_costs(row, setting) for row in rows}
    advice = advise(rows, costs, client_memory)
    return Profile(name, setting, tuple(rows), costs, client_memory, advice)


def advise(
    rows: Sequence[CutProfile], costs: dict[str, dict[str, Cost]], memory: int | None
) -> tuple[str, ...]:
    """Return what to take for a client with this much memory, and why.

    Raises
    ------
    ConfigError
        If nothing fits; it says what would.
    """
    cuts = [row for row in rows if row.at != WHOLE and row.trainable]
    if not cuts:
        return ("No cut leaves the client anything to train: only frozen clients remain.",)
    fits = {
        method: [row for row in cuts if memory is None or costs[row.at][method].memory <= memory]
        for method in (FIRST_ORDER, ZEROTH_ORDER)
    }
    have = "any memory" if memory is None else human_bytes(memory)
    if not fits[ZEROTH_ORDER] and not fits[FIRST_ORDER]:
        least = min(cuts, key=lambda row: costs[row.at][ZEROTH_ORDER].memory)
        need = costs[least.at][ZEROTH_ORDER].memory
        raise ConfigError(
            f"client-memory is {have}; no cut fits into it. The smallest need is "
            f"{human_bytes(need)}, of {ZEROTH_ORDER} at '{least.at}'; lower batch-size, or train "
            "fewer parameters."
        )
    said = []
    whole = costs.get(WHOLE, {}).get("fedavg")
    if whole is not None and memory is not None and whole.memory <= memory:
        said.append(
            f"The whole model trains on the client by backprop ({human_bytes(whole.memory)} of "
            f"{have}), so fedavg needs no cut; it moves {human_bytes(whole.up + whole.down)} a "
            "step."
        )
    for method, kind in ((FIRST_ORDER, "Backprop"), (ZEROTH_ORDER, "Zeroth order")):
        if not fits[method]:
            least = min(cuts, key=lambda row: costs[row.at][method].memory)
            least_need = human_bytes(costs[least.at][method].memory)
            said.append(
                f"{kind} does not fit into {have} at any cut: it needs {least_need} or more."
            )
            continue
        best = min(fits[method], key=lambda row: costs[row.at][method].seconds)
        cost = costs[best.at][method]
        said.append(
            f"{kind} fits at {len(fits[method])} of {len(cuts)} cuts; fastest is {method} at "
            f"'{best.at}': {human_bytes(cost.memory)} of memory, {cost.seconds:.3g} s a step "
            f"({cost.compute_seconds:.2g} s computing, {cost.transfer_seconds:.2g} s for "
            f"{human_bytes(cost.up)} up and {human_bytes(cost.down)} down), "
            f"{best.trainable:,} trained parameters."
        )
    said.append(_choice(fits, costs))
    return tuple(said)


def _choice(fits: dict[str, list[CutProfile]], costs: dict[str, dict[str, Cost]]) -> str:
    method = FIRST_ORDER if fits[FIRST_ORDER] else ZEROTH_ORDER
    best = min(fits[method], key=lambda row: costs[row.at][method].seconds)
    if method == FIRST_ORDER:
        why = "backprop learns more from a sample than forwards do, and it fits"
    else:
        why = (
            "only forwards fit; a zeroth-order step is the noisier the more parameters it trains, "
            "so train few of them or raise probes"
        )
    return f"Recommended: {method}, cut at '{best.at}': {why}."


def batch_like(shape: Sequence[int], size: int, tokens: int = 0, seed: int = 0) -> Tensor:
    """Return a random batch: floats [size, *shape], or ids below `tokens` where that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        return torch.randint(1, tokens, (size, *shape), generator=generator)
    return torch.randn(size, *shape, generator=generator)
