"""The one place that touches what Flower does not promise to keep.

From flwr 1.38 a fresh ``Message`` reads the identity of the task it is made in from the process.
Flower sets it in its own processes; code that stands in for Flower in one process (the inline
backend) has to set it itself.  Before 1.38 there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["SUPERLINK", "address", "identity"]

SUPERLINK = 1
"""The node id of the SuperLink."""


@contextmanager
def identity(run_id: int | None, node_id: int | None) -> Iterator[None]:
    """Set the identity that new messages carry, for the length of a block; None unsets it."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        yield
        return
    names = ("_run_id", "_node_id", "_task_id")  # the public getters raise while unset
    saved = [getattr(TaskIdentity, name) for name in names]
    values = (run_id, node_id, None if run_id is None else 1)
    for name, value in zip(names, values, strict=True):
        setattr(TaskIdentity, name, value)
    try:
        yield
    finally:
        for name, value in zip(names, saved, strict=True):
            setattr(TaskIdentity, name, value)


def address(metadata: Any, **fields: int | str) -> None:
    """Write ids into a message's metadata, as Flower's own grids do on push."""
    for name, value in fields.items():
        metadata.__dict__[f"_{name}"] = value
