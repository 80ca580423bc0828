"""What every request says of a run, and whether its clients can run a mini-batch in parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError
from sfl_flower.server.facts import Facts
from sfl_flower.split import Halves
from sfl_flower.split.checkpointing import checkpoint_segments
from sfl_flower.split.checks.layer_checks import layer_problem
from sfl_flower.task import SplitTask
from sfl_flower.wire import Setup

__all__ = ["TRIED", "apart", "check_parts", "run_setup"]

HEAD_FIX = "take head=linear or pooled, or use GroupNorm"
TRIED = 8
"""Test samples on which it is tried whether parts of a batch give what the whole does."""
ROUNDING, EXACT = 0.02, 1e-4
"""How far apart smashed data (sums of half precision) and losses may be, as a share of the largest
value."""


def run_setup(
    task: SplitTask, config: RunConfig, settings: Settings, facts: Facts, told: bool = False
) -> Setup:
    """Return what every request of a run says.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    config : RunConfig
        Settings of the run.
    settings : Settings
        Settings of the method.
    facts : Facts
        What the method is.
    told : bool
        Whether clients are told which parameters are trained, since the server chose them.

    Raises
    ------
    ConfigError
        If `micro_batch` is below the batch size and something that clients run mixes the samples of
        a batch.
    """
    size = config.samples_at_once
    if config.checkpointing:
        _check_checkpointing(task, facts, _held(task, config, settings, facts)[1])
    if size:
        check_parts(task, config, settings, facts)
    return Setup(
        config.model_seed,
        config.partition_text(),
        config.client_threads,
        config.smashed,
        config.gradients,
        config.client_device,
        settings.client_mode,
        size,
        config.checkpointing,
        task.trained if told else "",
        float(vars(settings).get("label_epsilon", 0.0)),
    )


def check_parts(task: SplitTask, config: RunConfig, settings: Settings, facts: Facts) -> None:
    """Refuse a run in micro-batches, whatever their size, that would not give what mini-batches do.

    Parameters
    ----------
    task, config, settings, facts
        As for `run_setup`; `micro_batch` may be a budget.

    Raises
    ------
    ConfigError
        If something that clients run mixes the samples of a batch.
    """
    halves, held = _held(task, config, settings, facts)
    said = f"micro_batch is '{config.micro_batch}'"
    _check_norms(said, held, "needs the whole mini-batch", "leave micro_batch at all")
    _check_parts(said, task, facts, halves)


def _held(
    task: SplitTask, config: RunConfig, settings: Settings, facts: Facts
) -> tuple[Halves, dict[str, nn.Module]]:
    """Return the halves, and what clients hold by what to call it."""
    halves = task.build(config.model_seed)
    held: dict[str, nn.Module] = {
        "client half": halves.client,
        **({"server half": halves.server} if facts.whole else {}),
    }
    if settings.client_mode == "eval":
        for half in held.values():
            half.eval()
    if facts.head:
        kind = str(getattr(settings, "head", "linear"))
        held["auxiliary head"] = task.build_head(config.model_seed, kind)
    return halves, held


def _check_checkpointing(task: SplitTask, facts: Facts, held: Mapping[str, nn.Module]) -> None:
    """Refuse checkpointing without a backprop, of what runs only once, and of nothing."""
    said, instead = "checkpointing is true", "leave checkpointing false"
    if facts.client != "first order":
        raise ConfigError(f"{said}, but clients of this method run no backprop; it must be false.")
    _check_norms(said, held, "cannot run twice", instead)
    if not sum(checkpoint_segments(half) for half in copy.deepcopy(list(held.values()))):
        raise ConfigError(
            f"{said}, but what clients of task {task.name!r} hold has no place to divide it: two "
            "blocks, or a few layers one after another; cut at a later layer, or "
            f"{instead}."
        )


def _check_norms(said: str, held: Mapping[str, nn.Module], why: str, instead: str) -> None:
    for what, module in held.items():
        for name, layer in module.named_modules():
            problem = layer_problem(name, layer) if isinstance(layer, _NormBase) else None
            if problem is not None:
                fix = HEAD_FIX if what == "auxiliary head" else problem.fix
                raise ConfigError(
                    f"{said}, but '{name}' of the {what} {why}: {problem.what}; {fix}, or "
                    f"{instead}."
                )


def _check_parts(said: str, task: SplitTask, facts: Facts, halves: Halves) -> None:
    """Refuse a run whose micro-batches would not give what its mini-batches do."""
    samples = task.samples("test")
    rows = np.unique(np.linspace(0, len(samples) - 1, TRIED).astype(np.int64))
    x, y = task.batch(samples, rows)
    client = halves.client.eval()
    with torch.no_grad():
        z, alone = client(x), [client(x[i : i + 1]) for i in range(len(x))]
        if any(apart(one[0], z[i], ROUNDING) for i, one in enumerate(alone)):
            raise ConfigError(
                f"{said}, but the client half of task {task.name!r} gives other smashed data for a "
                "sample alone than within a mini-batch; leave micro_batch at all."
            )
        output = halves.server.eval()(z)
        if (facts.whole or facts.head) and isinstance(output, Tensor):
            _check_loss(said, task, output, y)


def _check_loss(said: str, task: SplitTask, output: Tensor, y: Tensor) -> None:
    """Refuse a loss that is not the mean over the labels that count."""
    counted = torch.ones_like(y) if task.ignore_label is None else y != task.ignore_label
    weights = counted.reshape(len(y), -1).sum(dim=1).double()
    if not weights.sum():
        return
    parts = [
        weight * task.loss(output[i : i + 1], y[i : i + 1]).double()
        for i, weight in enumerate(weights)
        if weight
    ]
    whole = task.loss(output, y).double()
    if apart(torch.stack(parts).sum() / weights.sum(), whole, EXACT):
        raise ConfigError(
            f"{said}, but the loss of task {task.name!r} is not the mean over the labels of a "
            "batch, so those of its parts do not add up; give such a loss, or leave micro_batch at "
            "all."
        )


def apart(found: Tensor, wanted: Tensor, share: float) -> bool:
    """Tell whether tensors differ by more than a share of the largest value that is wanted."""
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    return bool(((found - wanted).abs() > share * largest + 1e-6).any())
