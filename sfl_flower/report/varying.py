"""Which settings may differ between runs that are one row or one curve."""

from __future__ import annotations

__all__ = ["VARYING"]

VARYING = frozenset(
    "seed rounds eval_every checkpoint_every timeout wave join_timeout patience client_threads "
    "server_threads client_device server_device client_gpus server_batch server_compile".split()
)
"""Settings that change how, where or how long something is trained, and not what."""
