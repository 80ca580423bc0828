"""Operations of a client half: of a forward, and of the part of it that a probe runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfl_flower.profiling.peaks import output_tensor
from sfl_flower.split.prefix import CROSSING_SHARE, Parted, parted
from sfl_flower.zo import Probing, Sweep

__all__ = ["Operations", "counted", "operations", "probed_part"]

T = TypeVar("T")
LEAST = 0.01
"""What a probe counts at least, in anchors: norms and activations have no products to count."""


@dataclass(frozen=True)
class Operations:
    """Floating point operations of an update on a client, per sample.

    Attributes
    ----------
    anchor : float
        Of what runs once, however many probes there are.
    probe : float
        Of each probe.
    """

    anchor: float
    probe: float


def counted(run: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns, run without a graph, and its floating point operations."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        value = run()
    return value, float(counter.get_total_flops())


def probed_part(half: nn.Module) -> Parted | None:
    """Return both parts of a half, None where it has one, or where nothing of it is trained.

    The half is in eval mode from then on.
    """
    half.eval()
    trained = [parameter for parameter in half.parameters() if parameter.requires_grad]
    return parted(half, trained) if trained else None


def operations(half: nn.Module, x: Tensor, probing: Probing) -> Operations:
    """Count what an update of HO-SFL costs a client: an anchor, and what each probe runs again.

    Parameters
    ----------
    half : nn.Module
        The client half, restricted to what it trains; it is in eval mode from then on.
    x : Tensor
        A few inputs [n, ...].
    probing : Probing
        How a mini-batch is probed.
    """
    half.eval()
    z, forward = counted(lambda: output_tensor(half(x)))
    anchor = again = forward
    if Sweep.fits(probing) and (parts := probed_part(half)) is not None:
        values, first = counted(partial(parts.first, x))
        crossing = sum(value.nbytes for value in values if isinstance(value, Tensor))
        again = forward - first
        if crossing > CROSSING_SHARE * z.nbytes:  # more than a client keeps for its probes
            anchor += first
    return Operations(anchor / len(x), max(probing.rule.cost * again, LEAST * forward) / len(x))
