"""What a mini-batch of each method costs a client at a cut: bytes, memory and seconds.

Closed forms of docs/methods.md, one exchange with one client; what does not depend on the cut
(control, joining) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sfl_flower.config import check_range
from sfl_flower.profiling.cuts import WHOLE, CutProfile

__all__ = ["COSTED", "Cost", "Setting", "method_costs"]

FLOAT, LABEL, KEY = 4, 8, 4
"""Bytes of a scalar or weight, of a label, and of the stream number of a client's directions."""
ALIGN_EVERY = 10
"""Rounds between two alignments of FSL-SAGE, each of which brings the head; the default."""


@dataclass(frozen=True)
class Setting:
    """Under which conditions a step is taken.

    Attributes
    ----------
    batch_size : int
        Samples of a mini-batch.
    bandwidth : float
        Bits per second, each way.
    probes : int
        P of the zeroth-order methods.
    sampled : int
        Clients of a round, whose scalars HO-SFL's journal passes on.
    local_steps : int
        Mini-batches of a round between two exchanges of weights.
    slowdown : float
        How many times slower a client computes than this machine.
    outputs : int
        Outputs of the model, for the size of a linear head.
    everywhere : bool
        Whether the model gives them at every position of a text, and so does the head.
    """

    batch_size: int
    bandwidth: float
    probes: int = 8
    sampled: int = 5
    local_steps: int = 1
    slowdown: float = 1.0
    outputs: int = 10
    everywhere: bool = False

    def __post_init__(self) -> None:
        check_range("batch-size", self.batch_size, 1)
        check_range("bandwidth", self.bandwidth, 1.0)
        check_range("probes", self.probes, 1, 4096)
        check_range("sampled", self.sampled, 1)
        check_range("local-steps", self.local_steps, 1)
        check_range("slowdown", self.slowdown, 1e-6)


@dataclass(frozen=True)
class Cost:
    """What one mini-batch of one method costs one client.

    Attributes
    ----------
    method : str
        Its name.
    up, down : int
        Bytes.
    memory : int
        Peak of the client's memory in bytes, its parameters included.
    compute_seconds, transfer_seconds : float
        Of the client's passes, and of its bytes at the given bandwidth.
    """

    method: str
    up: int
    down: int
    memory: int
    compute_seconds: float
    transfer_seconds: float

    @property
    def seconds(self) -> float:
        """Computing and transferring, one after the other."""
        return self.compute_seconds + self.transfer_seconds


@dataclass(frozen=True)
class _Parts:
    """What the closed forms are made of."""

    smashed: int
    labels: int
    weights: int
    head: int
    scalars: int
    profile: CutProfile
    setting: Setting


Form = Callable[[_Parts], tuple[int, int, int, float]]
"""Bytes up and down, bytes of memory beyond the half itself, and seconds of computing."""


def _forwards(parts: _Parts, count: int) -> float:
    return count * parts.setting.batch_size * parts.profile.forward_seconds


def _backprop(parts: _Parts) -> float:
    return parts.setting.batch_size * parts.profile.backprop_seconds


def _zeroth_order(parts: _Parts, held: int) -> int:
    # Trained parameters are restored from a second copy of them.
    return parts.profile.inference.bytes + FLOAT * parts.profile.trainable + held


def _frozen(parts: _Parts) -> tuple[int, int, int, float]:
    up = parts.smashed + parts.labels
    return up, 0, parts.profile.inference.bytes, _forwards(parts, 1)


def _ho_sfl(parts: _Parts) -> tuple[int, int, int, float]:
    # Everyone's scalars of the last round come down, and whose directions they are for.
    journal = parts.setting.sampled * (parts.scalars + KEY)
    up = parts.smashed + parts.labels + parts.scalars
    memory = _zeroth_order(parts, 2 * parts.smashed)  # z and λ are held
    return up, parts.smashed + journal, memory, _forwards(parts, 1 + parts.setting.probes)


def _heron(parts: _Parts) -> tuple[int, int, int, float]:
    # Scalars up, weights of half and head down, once a round.
    up = parts.smashed + parts.labels + parts.scalars
    memory = _zeroth_order(parts, parts.smashed + parts.head)
    return up, parts.weights + parts.head, memory, _forwards(parts, 1 + parts.setting.probes)


def _splitfed(parts: _Parts) -> tuple[int, int, int, float]:
    up = parts.smashed + parts.labels + parts.weights
    # The forward that gives z keeps no graph; the one that λ is led back through is a second.
    seconds = _forwards(parts, 1) + _backprop(parts)
    return up, parts.smashed + parts.weights, parts.profile.backprop.bytes, seconds


def _cse_fsl(parts: _Parts) -> tuple[int, int, int, float]:
    sent = parts.weights + parts.head
    memory = parts.profile.backprop.bytes + 2 * parts.head  # the head and its gradient
    return parts.smashed + parts.labels + sent, sent, memory, _backprop(parts)


def _fsl_sage(parts: _Parts) -> tuple[int, int, int, float]:
    # An alignment round brings the head as well.
    memory = parts.profile.backprop.bytes + parts.head
    up = parts.smashed + parts.labels + parts.weights
    return up, parts.weights + parts.head // ALIGN_EVERY, memory, _backprop(parts)


def _fedavg(parts: _Parts) -> tuple[int, int, int, float]:
    return parts.weights, parts.weights, parts.profile.backprop.bytes, _backprop(parts)


def _decomfl(parts: _Parts) -> tuple[int, int, int, float]:
    memory = _zeroth_order(parts, 0)
    down = parts.setting.sampled * (parts.scalars + KEY)
    return parts.scalars, down, memory, _forwards(parts, 1 + parts.setting.probes)


CUT_FORMS: Mapping[str, Form] = {
    "frozen": _frozen,
    "ho_sfl": _ho_sfl,
    "heron": _heron,
    "splitfed_v2": _splitfed,
    "cse_fsl": _cse_fsl,
    "fsl_sage": _fsl_sage,
}
WHOLE_FORMS: Mapping[str, Form] = {"fedavg": _fedavg, "decomfl": _decomfl}
COSTED = (*CUT_FORMS, *WHOLE_FORMS)
"""The methods with a cost here; SplitFed V1 costs a client what V2 does."""


def method_costs(profile: CutProfile, setting: Setting) -> dict[str, Cost]:
    """Return the cost of a mini-batch of each method at a cut.

    Parameters
    ----------
    profile : CutProfile
        The cut, or the whole model for the methods that have it on the client.
    setting : Setting
        Batch, bandwidth and the methods' settings.

    Returns
    -------
    dict of str to Cost
        By method; where the client has nothing to train, the frozen client alone.
    """
    size = setting.batch_size
    shape = profile.smashed_shape
    features = shape[-1] if setting.everywhere else math.prod(shape)
    positions = math.prod(shape[:-1]) if setting.everywhere else 1
    parts = _Parts(
        smashed=size * profile.smashed_bytes,
        labels=size * positions * LABEL,
        weights=profile.travelling_bytes // setting.local_steps,
        head=FLOAT * (features + 1) * setting.outputs // setting.local_steps,
        scalars=FLOAT * setting.probes,
        profile=profile,
        setting=setting,
    )
    forms = WHOLE_FORMS if profile.at == WHOLE else CUT_FORMS
    found = {}
    for name, form in forms.items():
        if not profile.trainable and name != "frozen":
            continue
        up, down, working, seconds = form(parts)
        found[name] = Cost(
            method=name,
            up=up,
            down=down,
            memory=profile.state_bytes + working,
            compute_seconds=seconds * setting.slowdown,
            transfer_seconds=8 * (up + down) / setting.bandwidth,
        )
    return found
