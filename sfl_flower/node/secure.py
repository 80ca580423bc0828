"""A client in secure sums: its key, and what it remembers from dealing to revealing.

A key is of one join.  What a round needs beside it is kept from one message to the next in the
node's own state, and each step is taken once: who masked two answers alike, or revealed shares by
two lists of who dropped out, would have told them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sfl_flower.errors import WireError
from sfl_flower.node.node import Node
from sfl_flower.privacy import secure_client
from sfl_flower.privacy.secure_client import Dealt, Partner
from sfl_flower.privacy.secure_keys import mark, new_key, public_key
from sfl_flower.privacy.secure_numbers import check_bound, largest, to_fixed
from sfl_flower.wire.secure import (
    SecureForwardRequest,
    SecureProbeRequest,
    UnmaskRequest,
    from_bits,
)
from sfl_flower.zo import condition_scalars

__all__ = ["deal", "fresh_key", "mask", "reveal"]

_KEY, _STEP, _ROUND, _INCOMING = "secure key", "secure step", "secure round", "secure shares"
_DEALT, _MASKED, _REVEALED = "dealt", "masked", "revealed"


def fresh_key(node: Node) -> bytes:
    """Make a new key for a node that joins, which forgets older ones; return the public one."""
    for name in (_KEY, _STEP, _ROUND, _INCOMING):
        node.store.drop(name)
    return public_key(_private(node))


def _private(node: Node) -> bytes:
    """Return the private key of a node, which makes one where it has none."""
    text = node.store.get_text(_KEY).get("private")
    if isinstance(text, str):
        return bytes.fromhex(text)
    made = new_key()
    node.store.put_text(_KEY, {"private": made.hex()})
    return made


def deal(node: Node, request: SecureForwardRequest) -> dict[str, Any]:
    """Return the fields of a reply: shares, or the node's key where the server has another.

    Raises
    ------
    WireError
        Keys of neighbours are none, or the node dealt in this round, or in a later one, before.
    """
    private = _private(node)
    key = public_key(private)
    if mark(key) != request.holds:
        return {"key": key}
    last = int(node.store.get_text(_STEP).get("round", -1))
    # Shares of one round dealt twice, to other neighbours, would open what both deals have alike.
    if request.round <= last:
        raise WireError(
            f"The client dealt shares in round {last}, and deals none in round {request.round}: "
            "masks of a round are used once."
        )
    partners = Partner.of(private, [row.tobytes() for row in request.neighbours])
    dealt = Dealt.deal(key, partners, request.opens, request.round)
    secrets = b"".join(partner.secret for partner in partners)
    own = {"secrets": secrets, "seed": dealt.seed, "own": dealt.own}
    arrays = {name: np.frombuffer(value, np.uint8) for name, value in own.items()}
    node.store.put(_ROUND, {**arrays, "keys": request.neighbours})
    values: dict[str, int | str] = {"round": request.round, "step": _DEALT, "opens": request.opens}
    node.store.put_text(_STEP, values)
    return {"mark": dealt.mark, "pairs": dealt.pairs, "sent": dealt.sent}


def mask(node: Node, request: SecureProbeRequest, scalars: np.ndarray, samples: int) -> np.ndarray:
    """Return scalars as whole numbers under masks, and remember the shares of others.

    Parameters
    ----------
    node, request : Node, SecureProbeRequest
        Who is asked what.
    scalars : numpy.ndarray
        v, float32 [minibatches, probes].
    samples : int
        Of all mini-batches.

    Returns
    -------
    numpy.ndarray
        uint64, of the same shape.

    Raises
    ------
    TrainingError
        A scalar is beyond the bound.
    WireError
        The node dealt nothing in this round, or masked its numbers before.
    """
    step = _step(node, request.round, _DEALT)
    unit, bound = request.probing.unit, request.limit
    check_bound(scalars.astype(np.float64) / unit, bound)
    if request.clip_norm or request.scale != "none":
        bound = largest(request.limit, request.clip_norm, request.probing.probes)
    own = (unit, request.clip_norm, request.scale)
    slopes = np.stack([condition_scalars(row, *own) for row in scalars]) / unit
    numbers = to_fixed(slopes, request.bits, bound) * (samples if request.weighed else 1)
    held = _held(node)
    partners = _partners(node, held)
    dealt = from_bits(request.dealt, len(partners))
    seed = held["seed"].tobytes()
    found = secure_client.masked(numbers, seed, partners, dealt, request.round)
    node.store.put(_ROUND, {name: held[name] for name in ("secrets", "keys", "own")})
    bits = np.frombuffer(request.dealt, np.uint8)
    node.store.put(_INCOMING, {"incoming": request.incoming, "dealt": bits})
    node.store.put_text(_STEP, {**step, "step": _MASKED})
    return found


def reveal(node: Node, request: UnmaskRequest) -> np.ndarray:
    """Return shares, uint8 [1 + dealers, SHARE_BYTES]; see `sfl_flower.privacy.secure_client`.

    Raises
    ------
    WireError
        The node masked no numbers in this round, or revealed shares before.
    """
    step = _step(node, request.round, _MASKED)
    held = _held(node)
    shares = node.store.get(_INCOMING)
    if shares is None:
        raise WireError("The client lost the shares of others; it can reveal none.")
    partners = _partners(node, held)
    dealt = from_bits(shares["dealt"].tobytes(), len(partners))
    arrived = from_bits(request.arrived, len(partners))
    found = secure_client.revealed(
        held["own"].tobytes(), public_key(_private(node)), partners, int(step["opens"]),
        dealt, shares["incoming"], arrived, request.round,
    )  # fmt: skip
    node.store.put_text(_STEP, {**step, "step": _REVEALED})
    node.store.drop(_INCOMING)
    node.store.drop(_ROUND)
    return found


def _step(node: Node, round: int, wanted: str) -> dict[str, int | str]:
    """Return where the node stands in a round, which must be behind one step and no other."""
    step = node.store.get_text(_STEP)
    if step.get("round") != round or step.get("step") != wanted:
        raise WireError(
            f"The client has not just {wanted} in round {round}, or lost what it kept of it; it "
            "takes each step of a secure sum once."
        )
    return step


def _held(node: Node) -> dict[str, np.ndarray]:
    held = node.store.get(_ROUND)
    if held is None:
        raise WireError("The client lost what it dealt in this round.")
    return held


def _partners(node: Node, held: Mapping[str, np.ndarray]) -> list[Partner]:
    """Return the neighbours as they were when shares were dealt."""
    own, keys = public_key(_private(node)), held["keys"]
    secrets = held["secrets"].reshape(len(keys), -1)
    return [
        Partner(key.tobytes(), secret.tobytes(), own < key.tobytes())
        for key, secret in zip(keys, secrets, strict=True)
    ]
