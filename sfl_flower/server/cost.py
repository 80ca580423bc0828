"""What closed forms of a client's cost are made of; each strategy has its own form."""

from __future__ import annotations

from dataclasses import dataclass

from sfl_flower.zo import Probing

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
    trained : int
        Bytes of the trained parameters.
    inference, backprop : int
        Peak bytes of its forward without a graph, and of forward and backward, parameters left out.
    forward_seconds, backprop_seconds : float
        Seconds of a forward, and of forward and backward.
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
    inference: int
    backprop: int
    forward_seconds: float
    backprop_seconds: float
    probes: Probing
    sampled: int

    @property
    def journal(self) -> int:
        """Bytes of a round's journal entry: everyone's scalars, and whose directions they are."""
        return self.sampled * (self.scalars + KEY_BYTES)

    def probe_seconds(self, beside_anchor: bool) -> float:
        """Seconds of probing; beside an anchor that the method runs anyway, or on its own."""
        rule = self.probes.rule
        anchor = 1 if beside_anchor or rule.anchored else 0
        return (anchor + rule.cost * self.probes.probes) * self.forward_seconds

    def probing(self, held: int = 0) -> int:
        """Peak bytes of probes: trained parameters are restored from a second copy of them."""
        return self.inference + self.trained + held


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
