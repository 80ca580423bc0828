"""Rows of first order at no more client memory than the forward-only methods beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from logging import getLogger

from sfl_flower.comparison.entries import Entry
from sfl_flower.errors import ConfigError
from sfl_flower.options import Amount
from sfl_flower.run.micro_batch import client_peak, in_units, largest_within
from sfl_flower.run.run import Plan
from sfl_flower.task import SplitTask

__all__ = ["matched_entries"]

_log = getLogger("flwr")


def matched_entries(
    entries: Sequence[Entry], plans: Sequence[Plan], task: SplitTask
) -> list[Entry]:
    """Return each method of first order once more, in micro-batches as large as memory allows.

    That is the largest client peak of the forward-only methods, measured as a budget is
    (`samples_in_budget`). A method that needs no more as it is, or has micro-batches of its own,
    gets no second row; one that needs more even for a sample at a time is left out with a warning.

    Parameters
    ----------
    entries : sequence of Entry
        The methods of the comparison.
    plans : sequence of Plan
        Their settings.
    task : SplitTask
        The learning problem.

    Raises
    ------
    ConfigError
        If no method has forward-only clients.
    """

    def peak(plan: Plan, size: int) -> int:
        return client_peak(task, plan.method, plan.config, plan.settings, size)

    def as_it_is(plan: Plan) -> int:
        given = plan.config.micro_batch
        size = Amount.samples(given) or plan.config.batch_size + 1
        return Amount.budget(given) or peak(plan, size)

    kinds = [plan.method.facts.client for plan in plans]
    peaks = [as_it_is(p) for p, kind in zip(plans, kinds, strict=True) if kind == "zeroth order"]
    if not peaks:
        raise ConfigError(
            "memory_matched is set, but no method of the comparison has forward-only clients whose "
            "memory could be matched; name one, or leave it out."
        )
    budget, found = max(peaks), []
    for entry, plan, kind in zip(entries, plans, kinds, strict=True):
        own = plan.config.micro_batch != "all"
        if kind != "first order" or own or as_it_is(plan) <= budget:
            continue
        size, _ = largest_within(budget, partial(peak, plan), plan.config.batch_size)
        if not size:
            _log.warning(
                "%s needs more than %s on a client, what forwards take, even for a sample at a "
                "time; it has no row of equal memory.", entry.label, in_units(budget)
            )  # fmt: skip
            continue
        named = f"micro_batch={size}"
        options = {**entry.options, "micro_batch": str(size)}
        found.append(Entry(f"{entry.label} ({named})", f"{entry.folder}-{named}", options))
    return found
