"""What closed forms of a client's cost are made of; each strategy has its own form."""

from __future__ import annotations

from dataclasses import dataclass

from sfl_flower.split.prefix import CROSSING_SHARE
from sfl_flower.zo import Probing, Sweep

__all__ = ["KEY_BYTES", "ClientCost", "Parts"]

KEY_BYTES = 4
"""Bytes of the stream number that names a client's directions."""


@dataclass(frozen=True)
class Parts:
    """A mini-batch of one client, in bytes and seconds.

    Attributes
    ----------
    smashed, gradients, labels : int
        Bytes of its smashed data, of λ and of its labels, as they travel.
    held : int
        Bytes of its smashed data, or of λ, where a client holds them.
    weights, head : int
        Bytes of what travels of the client half (or of the whole model where clients hold it) and
        of the auxiliary head, divided by the mini-batches between two exchanges of them.
    scalars : int
        Bytes of the scalars of its probes.
    trained, moving : int
        Bytes of the trained parameters, and of those that are twice there while a probe moves them.
    inference, probe, backprop : int
        Peak bytes of its forward without a graph, of its probes, and of forward and backward,
        parameters left out.
    forward_seconds, rerun_seconds, backprop_seconds : float
        Seconds of a forward, of what a probe runs of one, and of forward and backward.
    crossing : int
        Bytes of what crosses to what a probe runs, 0 where that is the whole forward.
    probes : Probing
        How the mini-batch is probed.
    sampled : int
        Clients of a round.
    """

    smashed: int
    gradients: int
    labels: int
    held: int
    weights: int
    head: int
    scalars: int
    trained: int
    moving: int
    inference: int
    probe: int
    backprop: int
    forward_seconds: float
    rerun_seconds: float
    backprop_seconds: float
    crossing: int
    probes: Probing
    sampled: int

    @property
    def journal(self) -> int:
        """Bytes of a round's journal entry: everyone's scalars, and whose directions they are."""
        return self.sampled * (self.scalars + KEY_BYTES)

    def probe_seconds(self, beside_anchor: bool, apart: bool = False) -> float:
        """Seconds of probing.

        Parameters
        ----------
        beside_anchor : bool
            Whether the method runs an anchor anyway.
        apart : bool
            Whether probes come in another message than the anchor.
        """
        rule, again = self.probes.rule, self.forward_seconds
        if Sweep.fits(self.probes):
            again = min(self.rerun_seconds, again)
        anchor = 1 if beside_anchor or rule.anchored else 0
        firsts = 2 if apart and self.crossing > CROSSING_SHARE * self.held else 1
        runs = anchor + rule.cost * self.probes.probes
        return firsts * (self.forward_seconds - again) + runs * again

    def probing(self, held: int = 0) -> int:
        """Peak bytes of probes: what one moves is a second copy of parameters, layer by layer."""
        peak = self.probe if Sweep.fits(self.probes) else self.inference
        return peak + (self.moving if self.probes.rule.sides else self.trained) + held


@dataclass(frozen=True)
class ClientCost:
    """What a mini-batch costs a client.

    Attributes
    ----------
    up, down : int
        Bytes to the server and back.
    memory : int
        Peak bytes beyond the parameters it holds.
    seconds : float
        Seconds of its passes.
    """

    up: int
    down: int
    memory: int
    seconds: float
