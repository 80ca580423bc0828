"""On what terms a method was trained: what sets its row apart from others beside the method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sfl_flower.report import RoundRecord
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.training.modes import changes_by_mode

__all__ = ["terms"]


def terms(strategy: SplitStrategy, history: Iterable[RoundRecord]) -> dict[str, Any]:
    """Return the terms of a run as plain values, for `summary.json`.

    Parameters
    ----------
    strategy : SplitStrategy
        The method's server half.
    history : iterable of RoundRecord
        The run's records.

    Returns
    -------
    dict of str to value
        ``client``: how clients learn. ``client_mode``: "train" or "eval", the mode of the client
        half; empty where nothing in it depends on that (no BatchNorm, no dropout).
        ``client_forwards``, ``client_backprops``: passes of a client for each sample it trains on,
        None where the method does not say. ``micro_batch``: samples that a client runs at one
        time, 0 for all of a mini-batch. ``checkpointing``: whether a backprop runs its forward
        again, which counts as one. ``client_schedule``, ``server_schedule``: how the rates
        go over the rounds; empty without such a rate. ``server_pace``: "round" or "batch", when the
        server half steps; ``server_passes``: how often it goes over the mini-batches of a round;
        ``server_steps``: how often it stepped, 0 where the server only averages;
        ``server_precision``: what it multiplied in, None where the server runs no backprop;
        ``server_compile``: whether it ended as a compiled program. ``privacy``: the ε of the run
        and what it covers, where there is one.
    """
    settings, facts = strategy.settings, strategy.facts
    mode = "eval" if settings.client_mode == "eval" else "train"
    forwards, backprops = settings.client_passes or (None, None)
    if forwards is not None and backprops and strategy.config.checkpointing:
        forwards += backprops
    spending = vars(strategy).get("spending")
    return {
        **({"privacy": spending.statement} if spending and spending.statement else {}),
        "client": facts.client,
        "client_mode": mode if changes_by_mode(strategy.client_half) else "",
        "client_forwards": forwards,
        "client_backprops": backprops,
        "micro_batch": strategy.setup.micro_batch,
        "checkpointing": strategy.setup.checkpointing,
        "client_schedule": settings.client_schedule,
        "server_schedule": strategy.config.server_schedule if facts.server_lr else "",
        "server_pace": settings.server_pace,
        "server_passes": settings.control.get("server_passes", 1),
        "server_steps": int(sum(record.extra.get("server_steps", 0) for record in history)),
        "server_precision": facts.precision(strategy.config),
        "server_compile": strategy.server.running.compiled,
    }
