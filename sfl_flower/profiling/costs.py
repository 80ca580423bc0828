"""What a mini-batch of each method costs a client at a cut: bytes, memory and seconds.

Closed forms of docs/methods.md, one exchange with one client; what does not depend on the cut
(control, joining) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sfl_flower.methods import METHODS, Method
from sfl_flower.options import check_range
from sfl_flower.profiling.cuts import WHOLE, CutProfile
from sfl_flower.server.cost import Parts
from sfl_flower.training.measures import IGNORED
from sfl_flower.wire.encodings import encoding_of
from sfl_flower.wire.labels import smallest
from sfl_flower.zo import Probing

__all__ = ["Cost", "Setting", "method_costs"]

FLOAT = 4
"""Bytes of a scalar or weight."""


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
    estimator : str
        That of the zeroth-order methods, a name of `sfl_flower.zo.ESTIMATORS`.
    smashed, gradients : str
        How smashed data and cut gradients travel, names of `sfl_flower.wire.encodings`.
    """

    batch_size: int
    bandwidth: float
    probes: int = 8
    sampled: int = 5
    local_steps: int = 1
    slowdown: float = 1.0
    outputs: int = 10
    everywhere: bool = False
    estimator: str = "forward"
    smashed: str = "float32"
    gradients: str = "float32"

    def __post_init__(self) -> None:
        check_range("batch-size", self.batch_size, 1)
        check_range("bandwidth", self.bandwidth, 1.0)
        Probing(self.probes, estimator=self.estimator)  # refuses what is out of range
        check_range("sampled", self.sampled, 1)
        check_range("local-steps", self.local_steps, 1)
        check_range("slowdown", self.slowdown, 1e-6)
        encoding_of(self.smashed, "smashed")
        encoding_of(self.gradients, "gradients")

    @property
    def probing(self) -> Probing:
        """How a mini-batch is probed."""
        return Probing(self.probes, estimator=self.estimator)


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


def method_costs(
    profile: CutProfile, setting: Setting, methods: Iterable[Method] = tuple(METHODS.values())
) -> dict[str, Cost]:
    """Return the cost of a mini-batch of each method at a cut.

    Parameters
    ----------
    profile : CutProfile
        The cut, or the whole model for the methods that have it on the client.
    setting : Setting
        Batch, bandwidth and the methods' settings.
    methods : iterable of Method
        The methods; those without a closed form are left out.

    Returns
    -------
    dict of str to Cost
        By method; where the client has nothing to train, the frozen client alone.
    """
    size, again = setting.batch_size, profile.rerun
    shape = profile.smashed_shape
    features = shape[-1] if setting.everywhere else math.prod(shape)
    positions = math.prod(shape[:-1]) if setting.everywhere else 1
    parts = Parts(
        smashed=_travelling(setting.smashed, size, shape),
        gradients=_travelling(setting.gradients, size, shape),
        held=size * profile.smashed_bytes,
        labels=size * positions * _label_bytes(setting),
        weights=profile.travelling_bytes // setting.local_steps,
        head=FLOAT * (features + 1) * setting.outputs // setting.local_steps,
        scalars=FLOAT * setting.probes,
        trained=FLOAT * profile.trainable,
        moving=FLOAT * profile.moving,
        inference=profile.inference.bytes,
        probe=profile.inference.bytes if again is None else again.peak.bytes,
        backprop=profile.backprop.bytes,
        crossing=0 if again is None else size * again.crossing_bytes,
        forward_seconds=size * profile.forward_seconds,
        rerun_seconds=size * (profile.forward_seconds if again is None else again.seconds),
        backprop_seconds=size * profile.backprop_seconds,
        probes=setting.probing,
        sampled=setting.sampled,
    )
    found = {}
    for method in methods:
        learns = method.facts.client != "nothing"
        if method.facts.whole != (profile.at == WHOLE) or (learns and not profile.trainable):
            continue
        if (cost := method.cost(parts)) is None:
            continue
        found[method.name] = Cost(
            method=method.name,
            up=cost.up,
            down=cost.down,
            memory=profile.state_bytes + cost.memory,
            compute_seconds=cost.seconds * setting.slowdown,
            transfer_seconds=8 * (cost.up + cost.down) / setting.bandwidth,
        )
    return found


def _label_bytes(setting: Setting) -> int:
    """Return the bytes of a label; at positions of texts there is one that does not count."""
    least = IGNORED if setting.everywhere else 0
    return int(smallest(np.array([least, setting.outputs - 1])).itemsize)


def _travelling(encoding: str, size: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of a mini-batch of smashed data, or of λ, in an encoding.

    What compression saves depends on the values and is left out.
    """
    values = np.ones((size, *shape), dtype=np.float32)
    parts = encoding_of(encoding.removesuffix("+deflate")).encode(values, "smashed")
    return sum(part.nbytes for part in parts.values())
