"""Sentences that the refusals of a cut have in common."""

from __future__ import annotations

import difflib

__all__ = ["listing", "outer_names", "unknown"]

_SHOWN = 12


def listing(legal: list[str], around: int) -> str:
    """List the legal cuts, at most twelve, those around position ``around`` first of all."""
    if not legal:
        return "this model has no legal cut"
    start = max(0, min(around - _SHOWN // 2, len(legal) - _SHOWN))
    shown = ", ".join(legal[start : start + _SHOWN])
    if len(legal) <= _SHOWN:
        return f"the legal cuts are: {shown}"
    before = "… " if start else ""
    after = " …" if start + _SHOWN < len(legal) else ""
    return f"the legal cuts are: {before}{shown}{after} ({len(legal)} in all)"


def unknown(name: str, called: list[str], modules: list[str]) -> str:
    """Say that there is no layer ``name``, and which one may be meant."""
    close = difflib.get_close_matches(name, called, n=1) or difflib.get_close_matches(
        name, modules, n=1
    )
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"the model has no layer named '{name}'{hint}"


def outer_names(name: str) -> list[str]:
    """Return the qualified names of what ``name`` lies in, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
