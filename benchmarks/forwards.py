"""Client forwards and backwards per local step, counted by hooks, beside the closed forms.

A backward counts as two forwards, the usual convention.  Counted is what clients run in the second
round, and for FSL-SAGE in the first as well, which aligns.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.calls import CallCounter
from benchmarks.figure import Figure
from benchmarks.trial import train
from sfl_flower.run.run import Plan
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.split import Halves
from sfl_flower.task import Samples, SplitTask
from sfl_flower.zo import ESTIMATORS

__all__ = ["CASES", "Case", "Counts", "count", "run"]

CLIENTS, EACH, BATCH, FEATURES, CLASSES = 2, 12, 4, 6, 3
STEPS = EACH // BATCH


@dataclass(frozen=True)
class Case:
    """A method and what its client runs a local step.

    Attributes
    ----------
    name : str
        Names the figure.
    method : str
        A key of `sfl_flower.METHODS`.
    options : Mapping[str, Any]
        Its settings.
    forwards, backwards : float
        The closed form.
    round : int
        Which round is counted.
    note : str
        What is to be said of it.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    forwards: float
    backwards: float
    round: int = 2
    note: str = ""

    @property
    def units(self) -> float:
        """Forwards, a backward counted as two."""
        return self.forwards + 2 * self.backwards


_LOCAL = {"local_steps": STEPS}
CASES = (
    Case("heron", "heron", {**_LOCAL, "probes": 1}, 2, 0, note="P + 1, P = 1"),
    Case("heron_3_probes", "heron", {**_LOCAL, "probes": 3}, 4, 0, note="P + 1, P = 3"),
    Case("ho_sfl", "ho_sfl", {"minibatches": STEPS, "probes": 5}, 6, 0, note="P + 1, P = 5"),
    *(
        Case(
            f"ho_sfl_{name}",
            "ho_sfl",
            {"minibatches": STEPS, "probes": 2, "estimator": name},
            1 + 2 * rule.forwards,
            0,
            note=f"the anchor and 2 probes, estimator {name}",
        )
        for name, rule in ESTIMATORS.items()
    ),
    Case("cse_fsl", "cse_fsl", _LOCAL, 1, 1),
    Case("fsl_sage", "fsl_sage", {**_LOCAL, "buffer": BATCH, "align_epochs": 1}, 1, 1),
    Case(
        "fsl_sage_aligned",
        "fsl_sage",
        {**_LOCAL, "buffer": BATCH, "align_epochs": 1},
        1 + 1 / STEPS,
        1,
        round=1,
        note=f"the first of {STEPS} steps runs its forward twice: its smashed data go ahead of the "
        "alignment, and between messages a client keeps no graph",
    ),
    Case(
        "splitfed_v2",
        "splitfed_v2",
        _LOCAL,
        2,
        1,
        note="on paper 1 forward: it is run again when the gradient arrives, since between "
        "messages a client keeps no graph",
    ),
    Case("fedavg", "fedavg", _LOCAL, 1, 1),
    Case("frozen", "frozen", {"minibatches": STEPS}, 1, 0),
)
"""What is counted."""


@dataclass
class Counts:
    """Calls so far of all clients' halves.

    Attributes
    ----------
    counters : list of CallCounter
        One a client half.
    """

    counters: list[CallCounter] = field(default_factory=list)

    def total(self) -> tuple[int, int]:
        """Return forwards and backwards."""
        return (
            sum(counter.forwards for counter in self.counters),
            sum(counter.backwards for counter in self.counters),
        )


class _Watched(SplitTask):
    """A task whose client halves count their calls from the moment they are built."""

    counts: Counts

    def build(self, seed: int) -> Halves:
        halves = super().build(seed)
        counter = CallCounter(halves.client)
        counter.__enter__()
        self.counts.counters.append(counter)
        return halves


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield a figure for each case, and the share that equals its closed form."""
    different = []
    for case in CASES:
        forwards, backwards = count(case)
        if (forwards, backwards) != (case.forwards, case.backwards):
            different.append(case.name)
        said = f"; {case.note}" if case.note else ""
        yield Figure(
            f"forwards_{case.name}",
            forwards + 2 * backwards,
            "forwards",
            case.units,
            f"{forwards:g} forwards and {backwards:g} backwards of the client half a step, closed "
            f"form {case.forwards:g} and {case.backwards:g}{said}",
            lower_is_better=True,
        )
    yield Figure(
        "forwards_equal_share",
        1.0 - len(different) / len(CASES),
        "share",
        1.0,
        f"{len(CASES) - len(different)} of {len(CASES)} equal; not equal: "
        f"{', '.join(different) or 'none'}",
    )


def count(case: Case) -> tuple[float, float]:
    """Return forwards and backwards of the client half per local step."""
    task = _Watched(
        name="small", model=_model, cut="act", train=_samples, test=_samples, classes=CLASSES
    )
    counts = Counts()
    object.__setattr__(task, "counts", counts)
    seen: list[tuple[int, int, int]] = []

    def before(strategy: SplitStrategy) -> None:
        counts.counters.clear()  # the server's own copy of the client half is not counted

    def note(strategy: SplitStrategy) -> None:
        seen.append((*counts.total(), strategy.ledger.samples))

    plan = Plan.read(
        {
            "method": case.method,
            "clients": CLIENTS,
            "batch_size": BATCH,
            "partition": "iid",
            "eval_every": 10**6,
            **case.options,
        }
    )
    train(task, plan, 2, note, before)
    earlier, later = seen[case.round - 1], seen[case.round]
    steps = (later[2] - earlier[2]) / BATCH
    return (later[0] - earlier[0]) / steps, (later[1] - earlier[1]) / steps


def _model() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(FEATURES, 5), act=nn.Tanh(), hidden=nn.Linear(5, 4), out=nn.Linear(4, 3)
        )
    )


def _samples() -> Samples:
    x = torch.randn(CLIENTS * EACH, FEATURES, generator=torch.Generator().manual_seed(0))
    return Samples(x, torch.arange(CLIENTS * EACH) % CLASSES)
