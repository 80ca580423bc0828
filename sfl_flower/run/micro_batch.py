"""How many samples a client may run at one time in a memory budget, from trials of its own code.

A trial is one round of the method with one client in this process, whose peak the meter of every
first round takes.  From two samples on peaks grow along lines, the highest of which counts, so the
line through two that were tried lies above the peaks between them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging import ERROR, INFO, getLogger
from typing import Any

import numpy as np

from sfl_flower.config import RunConfig, Settings
from sfl_flower.data import Samples
from sfl_flower.data.memory import forget, lend
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.methods import Method
from sfl_flower.node.sync import forget_recent
from sfl_flower.options import UNITS, Amount
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.inline import InlineGrid
from sfl_flower.server.setup import check_parts
from sfl_flower.server.subspace import fitted, resolved
from sfl_flower.task import SplitTask
from sfl_flower.training.device import find_device
from sfl_flower.wire.flower import SUPERLINK, identity

__all__ = ["client_peak", "in_units", "largest_within", "samples_in_budget"]

STEPS = 2
"""Local steps of a trial: an optimiser has its state from the second on."""
TRIALS = 8
"""Most numbers that are tried."""
TRIAL_RUN = 2**31 - 1
BUILT = ("halves", "unused", "first buffers", "fitted")
"""What a process keeps of a task's model, and its trials need not build again."""

_log = getLogger("flwr")


def samples_in_budget(
    task: SplitTask, method: Method, config: RunConfig, settings: Settings
) -> int:
    """Return how many samples of a mini-batch fit into the budget that `micro_batch` names.

    Parameters
    ----------
    task, method, config, settings
        The run.

    Returns
    -------
    int
        From 1; `config.batch_size` + 1 where whole mini-batches fit.

    Raises
    ------
    ConfigError
        If one sample alone does not fit, or something that clients run mixes samples.
    """
    check_parts(task, config, settings, method.facts)  # a trial would say its own number
    budget = Amount.budget(config.micro_batch)
    peak = partial(client_peak, task, method, config, settings)
    found, peaks = largest_within(budget, peak, config.batch_size)
    if not found:
        least = min(peaks.values())
        raise ConfigError(
            f"micro_batch is '{config.micro_batch}', but a client of method '{method.name}' "
            f"allocates {in_units(least)} for a sample at a time, its parameters left out; give at "
            f"least {-(-least // UNITS['KiB'])}KiB, cut at an earlier layer, or train fewer "
            "parameters (task.trained)."
        )
    whole = found >= config.batch_size
    _log.log(
        INFO,
        "\t├──> Micro-batches: %s at one time, %s of %s measured for a client, its parameters left "
        "out",
        "all samples" if whole else f"{found} samples",
        in_units(peaks[found]),
        config.micro_batch,
    )
    return config.batch_size + 1 if whole else found


def largest_within(
    budget: int, peak: Callable[[int], int], most: int
) -> tuple[int, dict[int, int]]:
    """Return the largest number that was tried and found to fit, 0 for none, and the peaks.

    Parameters
    ----------
    budget : int
        Bytes.
    peak : callable
        Measures the bytes of a number of samples.
    most : int
        The largest number to try.
    """
    low, high = min(2, most), most
    peaks = {low: peak(low)}
    if peaks[low] > budget:  # one sample may take less, and for some operations takes more
        peaks[1] = peak(1)
        return int(peaks[1] <= budget), peaks
    if high > low:
        peaks[high] = peak(high)
    if peaks[high] <= budget:
        return high, peaks
    while high - low > 1 and len(peaks) < TRIALS:
        # The line through two points of a convex curve is above it: what it allows mostly fits.
        share = (budget - peaks[low]) / max(1, peaks[high] - peaks[low])
        tried = min(max(low + int((high - low) * share), low + 1), high - 1)
        peaks[tried] = peak(tried)
        low, high = (tried, high) if peaks[tried] <= budget else (low, tried)
    return low, peaks


def client_peak(
    task: SplitTask, method: Method, config: RunConfig, settings: Settings, size: int
) -> int:
    """Return the peak of a client of a run that runs `size` samples at one time, in bytes.

    It is what torch allocates beyond the parameters, as `Ledger.client_peak_bytes`; samples are the
    first ones of the training set, or of the test set where nodes have their own.

    Raises
    ------
    TrainingError
        If the trial fails.
    """
    trial = _trial(task, config)
    steps = getattr(settings, "local_steps", STEPS) or STEPS
    # Probes one after another take what one does; those of one forward take more.
    probes = min(int(getattr(settings, "probes", 1)), max(STEPS, getattr(settings, "stack", 1)))
    own: dict[str, Any] = {"local_steps": min(steps, STEPS), "upload_every": 1, "probes": probes}
    fields = {name: value for name, value in own.items() if hasattr(settings, name)}
    device = config.client_device
    config = replace(
        config,
        clients=1,
        sampled=0,
        partition="iid",
        validation=0.0,
        micro_batch=str(size) if size <= config.batch_size else "all",
        eval_every=10**6,
        patience=1,
        client_device=device if device == "cpu" else find_device("auto", "client_device").type,
        client_gpus=0.0,
    )
    try:
        with _aside(), identity(TRIAL_RUN, SUPERLINK):
            strategy = method.server(trial, config, replace(settings, **fields))
            app = make_client_app(lambda context: trial, [method])
            grid = InlineGrid(app, 1, TRIAL_RUN)
            strategy.start(
                grid=grid,
                initial_arrays=strategy.arrays(),
                num_rounds=1,
                timeout=config.timeout,
            )
    finally:
        forget(trial.key)
    if not strategy.ledger.client_peak_bytes:
        notes = "; ".join(note for record in strategy.records for note in record.notes)
        raise TrainingError(
            f"The trial that measures a client's memory gave no figure ({notes or 'no notes'}); "
            "give micro_batch as a number of samples."
        )
    return strategy.ledger.client_peak_bytes


def _trial(task: SplitTask, config: RunConfig) -> SplitTask:
    """Return the task on as few samples as a round of a trial needs, its model built already."""
    whole = task.samples("test" if task.own_data else "train")
    rows = np.arange(STEPS * config.batch_size) % len(whole)

    def few() -> Samples:
        return whole.take(rows)

    task = resolved(task, config.model_seed)
    fitted(task, config.model_seed, config.subspace_from)
    trial = replace(task, train=few, test=few, token="")
    lend(task.key, trial.key, BUILT)
    return trial


def in_units(count: int) -> str:
    """Return bytes in the largest unit of which they are one, ``6.3 MiB``."""
    unit = max((u for u in UNITS if UNITS[u] <= count), key=UNITS.__getitem__, default="KiB")
    return f"{count / UNITS[unit]:.1f} {unit}"


@contextmanager
def _aside() -> Iterator[None]:
    """Run a block that leaves neither words nor a client's state behind."""
    level, named = _log.level, os.environ.get("SFL_STATE_DIR")
    _log.setLevel(ERROR)
    forget_recent()
    with tempfile.TemporaryDirectory(prefix="sfl_flower-") as directory:
        os.environ["SFL_STATE_DIR"] = directory
        try:
            yield
        finally:
            _log.setLevel(level)
            forget_recent()
            if named is None:
                del os.environ["SFL_STATE_DIR"]
            else:
                os.environ["SFL_STATE_DIR"] = named
