"""Whether a reply answers its request: what any receiver can tell from the two alone.

A request says what it asks for (`Request.asks`); here is the one place that holds a reply against
it.  What only a method knows (labels within the classes, the shape of smashed data, the size of a
scalar) its strategy checks afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sfl_flower.data import client_samples, largest_batch
from sfl_flower.errors import WireError
from sfl_flower.wire.common import StaleReply
from sfl_flower.wire.message import Asked, Reply, Request

__all__ = ["check_answer"]

_SAME = ("round", "step")
"""Fields that mean the same in a request and in its reply, where both have them."""


def check_answer(reply: Reply, request: Request, held: int) -> None:
    """Refuse a reply that does not bring what was asked for.

    Parameters
    ----------
    reply : Reply
        What came; a `StaleReply` answers every request.
    request : Request
        What was asked.
    held : int
        Training samples of the client.

    Raises
    ------
    WireError
        With the first thing that differs.
    """
    if isinstance(reply, StaleReply):
        return
    if request.ANSWER and request.ANSWER != reply.WHAT:
        raise WireError(f"it is a {reply.WHAT}, asked was a {request.ANSWER}.")
    told, wanted, asked = vars(reply), vars(request), request.asks()
    for problem in _problems(told, wanted, asked, held):
        raise WireError(problem)


def _problems(
    told: dict[str, Any], wanted: dict[str, Any], asked: Asked, held: int
) -> Iterator[str]:
    for name in _SAME:
        if name in told and name in wanted and told[name] != wanted[name]:
            yield f"it answers {name} {told[name]}, asked was {name} {wanted[name]}."
    if asked.weights is not None and asked.weights != bool(told.get("weights")):
        yield "it brings weights before its last step, or none after it."
    taken = told.get("taken")
    if taken is not None and len(taken) != asked.steps:
        yield f"it has {len(taken)} local steps, asked were {asked.steps}."
    scalars = told.get("scalars")
    if asked.scalars is not None and (scalars is None or scalars.shape != asked.scalars):
        shape = "none" if scalars is None else scalars.shape
        yield f"it has scalars of shape {shape}, asked was {asked.scalars}."
    yield from _batch_problems(told, wanted, asked, held)
    if asked.steps is not None:
        right = client_samples(held, wanted["batch_size"], asked.steps)
        if told["samples"] != right:
            yield (
                f"it says {told['samples']} samples; {asked.steps} steps of this client are "
                f"{right}."
            )


def _batch_problems(
    told: dict[str, Any], wanted: dict[str, Any], asked: Asked, held: int
) -> Iterator[str]:
    """Yield what is wrong with smashed data and labels, if the reply brings any."""
    sizes, labels = told.get("sizes"), told.get("y")
    if sizes is not None:
        counts = sizes.tolist()
    elif labels is not None:
        counts = [len(labels)]
    else:
        return
    if asked.batches is not None and len(counts) != asked.batches:
        yield f"it has smashed data of {len(counts)} mini-batches, asked were {asked.batches}."
    most = largest_batch(held, wanted["batch_size"])
    if (largest := max(counts, default=0)) > most:
        yield f"it has a mini-batch of {largest} samples, asked were at most {most}."
    if asked.rows > 1 and len(told["z"]) != asked.rows * sum(counts):
        yield (
            f"it has {len(told['z'])} rows of smashed data for {sum(counts)} samples, asked were "
            f"{asked.rows} rows for each."
        )
