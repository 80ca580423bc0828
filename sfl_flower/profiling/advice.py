"""Which method to take, and where to cut, for a client with so much memory and bandwidth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, Method
from sfl_flower.profiling.costs import Cost, Setting
from sfl_flower.profiling.cuts import WHOLE, CutProfile
from sfl_flower.report.table import human_bytes
from sfl_flower.server.facts import Facts

__all__ = ["advise"]

SAVES = 0.95
"""Memory of forwards over that of backprop below which it is called saved."""


@dataclass(frozen=True)
class _Option:
    """A method at a cut, and whether a client has the memory."""

    row: CutProfile
    cost: Cost
    facts: Facts
    fits: bool

    @property
    def method(self) -> str:
        return self.cost.method

    @property
    def rank(self) -> tuple[int, float]:
        """What comes first is to be taken: the better class, then the faster step."""
        return self.facts.rank, self.cost.seconds

    @property
    def where(self) -> str:
        place = "without a cut" if self.row.at == WHOLE else f"cut at '{self.row.at}'"
        return f"{self.method}, {place}"


def advise(
    rows: Sequence[CutProfile],
    costs: dict[str, dict[str, Cost]],
    setting: Setting,
    memory: int | None,
    methods: Iterable[Method] = tuple(METHODS.values()),
) -> tuple[str, ...]:
    """Return in sentences what fits, what to take, and why not the next best.

    Parameters
    ----------
    rows : sequence of CutProfile
        The cuts and the whole model.
    costs : dict of str to dict of str to Cost
        By cut and method.
    setting : Setting
        What the costs are for.
    memory : int or None
        Bytes that a client has; None for as many as it takes.
    methods : iterable of Method
        The methods. One that trains nothing on the client, the control, is not among the advice.

    Raises
    ------
    ConfigError
        If nothing fits; it says what would.
    """
    learning = [method for method in methods if method.facts.client != "nothing"]
    learning.sort(key=lambda method: method.facts.rank)
    options = [
        _Option(row, cost, method.facts, memory is None or cost.memory <= memory)
        for row in rows
        for method in learning
        if (cost := costs[row.at].get(method.name)) is not None
    ]
    if all(option.row.at == WHOLE for option in options):
        return ("No cut leaves the client anything to train: only frozen clients remain.",)
    have = "any memory" if memory is None else human_bytes(memory)
    fitting = [option for option in options if option.fits]
    if not fitting:
        least = min(options, key=lambda option: option.cost.memory)
        raise ConfigError(
            f"client-memory is {have}; no method fits into it. The smallest need is "
            f"{human_bytes(least.cost.memory)}, of {least.where}; lower batch-size, or train "
            "fewer parameters."
        )
    names = list(dict.fromkeys(option.method for option in options))
    best = [_best(options, name) for name in names]
    found = sorted((option for option in best if option), key=lambda option: option.rank)
    chosen = min(fitting, key=lambda option: option.rank)
    said = [] if memory is None else [_overview(options, have)]
    said.append(_choice(chosen, setting))
    others = [option for option in found if option.method != chosen.method]
    if others:
        said.append(_next(others[0], chosen, have))
    if price := _no_saving(options):
        said.append(price)
    return tuple(said)


def _no_saving(options: Sequence[_Option]) -> str:
    """Say so where forwards alone save a client no memory at any cut, "" where they do."""
    pairs = []
    for at in dict.fromkeys(option.row.at for option in options):
        here = [option for option in options if option.row.at == at]
        forwards = [option for option in here if option.facts.client == "zeroth order"]
        backprop = [option for option in here if option.facts.client == "first order"]
        if forwards and backprop:
            least = [min(some, key=lambda o: o.cost.memory) for some in (forwards, backprop)]
            pairs.append((least[0], least[1]))
    if not pairs or any(f.cost.memory < SAVES * b.cost.memory for f, b in pairs):
        return ""
    forward, back = min(pairs, key=lambda pair: pair[0].cost.memory / pair[1].cost.memory)
    return (
        f"Forwards alone do not pay here: at no cut do they save a client 5 % of memory (at best "
        f"{forward.where}: {human_bytes(forward.cost.memory)}, where {back.method} takes "
        f"{human_bytes(back.cost.memory)}). They do with more layers before the cut, or larger "
        "mini-batches."
    )


def _best(options: Sequence[_Option], method: str) -> _Option | None:
    """Return the first-ranked option of a method that fits, else the one of the least memory."""
    own = [option for option in options if option.method == method]
    fitting = [option for option in own if option.fits]
    if fitting:
        return min(fitting, key=lambda option: option.rank)
    return min(own, key=lambda option: option.cost.memory, default=None)


def _overview(options: Sequence[_Option], have: str) -> str:
    """Say at how many cuts each method fits."""
    fits, not_at_all = [], []
    for method in dict.fromkeys(option.method for option in options):
        own = [option for option in options if option.method == method]
        count = sum(option.fits for option in own)
        if count:
            cuts = "" if own[0].row.at == WHOLE else f" at {count} of {len(own)} cuts"
            fits.append(f"{method}{cuts}")
        elif own:
            least = min(option.cost.memory for option in own)
            not_at_all.append(f"{method} (needs {human_bytes(least)})")
    text = f"Into {have} fit {', '.join(fits)}"
    return f"{text}; not {', '.join(not_at_all)}." if not_at_all else f"{text}."


def _choice(chosen: _Option, setting: Setting) -> str:
    cost = chosen.cost
    noisy = (
        "; its steps are the noisier the more it trains, so train little of it or raise probes"
        if chosen.facts.rank
        else ""
    )
    return (
        f"Recommended: {chosen.where}: {chosen.facts.does}. A step takes "
        f"{human_bytes(cost.memory)} of memory and {_seconds(cost)} (up {human_bytes(cost.up)}, "
        f"down {human_bytes(cost.down)}, at {setting.bandwidth / 1e6:g} Mbit/s); the client "
        f"trains {chosen.row.trainable:,} parameters{noisy}."
    )


def _next(other: _Option, chosen: _Option, have: str) -> str:
    """Say why the next best is not the one to take."""
    if not other.fits:
        why = f"it needs {human_bytes(other.cost.memory)} or more, and a client has {have}"
    elif other.rank[0] > chosen.rank[0]:
        why = f"less of the model learns by backprop ({other.facts.does})"
    else:
        moved = human_bytes(other.cost.up + other.cost.down)
        why = f"a step takes {_seconds(other.cost)} of {moved}"
    return f"Next best: {other.where}, but {why}."


def _seconds(cost: Cost) -> str:
    return (
        f"{cost.seconds:.3g} s: {cost.compute_seconds:.2g} s of computing and "
        f"{cost.transfer_seconds:.2g} s of transfer"
    )
