"""Conditions of a forward that ask for the form of a tensor, never for its values.

``if x.ndim != 4: raise ...`` stops a forward that is called wrongly; called rightly, it does
nothing.  A recording takes such a condition to hold and leaves it out.
"""

from __future__ import annotations

import ast
import linecache
import operator
from types import FrameType

from torch import fx

__all__ = ["asks_for_form", "passing"]

_FORM = {"ndim", "shape", "dtype", "device", "layout", "is_cuda", "is_quantized", "requires_grad"}
_METHODS = {"dim", "ndimension", "size", "numel", "nelement", "is_floating_point", "is_complex"}


def asks_for_form(node: fx.Node) -> bool:
    """Tell whether a recorded value follows from shapes, dtypes and devices alone."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _FORM
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    known = node.target is len or getattr(operator, name, None) is node.target
    sources = node.all_input_nodes
    return known and bool(sources) and all(asks_for_form(source) for source in sources)


def passing(frame: FrameType) -> bool | None:
    """Return what a condition must be for the forward to go on, where it only guards it.

    Parameters
    ----------
    frame : FrameType
        Of the forward, at the line that asks.

    Returns
    -------
    bool or None
        The value; None where the line is neither ``assert`` nor an ``if`` that does nothing but
        raise, or where it is too involved to tell.
    """
    source = "".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals))
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for statement in ast.walk(tree):
        if not isinstance(statement, ast.If | ast.Assert):
            continue
        test = statement.test
        if not test.lineno <= frame.f_lineno <= (test.end_lineno or test.lineno):
            continue
        if isinstance(statement, ast.Assert):
            return _asked(test, True)
        if statement.orelse or not all(isinstance(line, ast.Raise) for line in statement.body):
            return None
        return _asked(test, False)
    return None


def _asked(test: ast.expr, wanted: bool) -> bool | None:
    """Return what each part of a test must be for the whole to be `wanted`, None if they differ."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _asked(test.operand, not wanted)
    if isinstance(test, ast.BoolOp):
        found = {_asked(part, wanted) for part in test.values}
        return found.pop() if len(found) == 1 else None
    if any(isinstance(part, ast.BoolOp | ast.IfExp) for part in ast.walk(test)):
        return None
    return wanted
