"""What single operations of a recorded half do that a zeroth-order client cannot live with."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, cast

from torch import fx, nn

from sfl_flower.split.checks.layer_checks import EVAL_FIX, RANDOM_FIX
from sfl_flower.split.checks.problem import Problem
from sfl_flower.split.graph.effects import argument, effects
from sfl_flower.split.graph.half import Half

__all__ = ["operation_problems"]

_ALWAYS_RANDOM = {
    *("bernoulli", "bernoulli_", "multinomial", "normal", "normal_", "uniform_", "exponential_"),
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d", "poisson", "cauchy_"),
    *("random_", "geometric_", "log_normal_"),
}
# Name of the operation: its rate and its mode, each by name and by place in a native call.
_DROPS = (("p", 1), ("training", 2))
_SOMETIMES_RANDOM = {
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d"), _DROPS),
    **dict.fromkeys(("alpha_dropout", "feature_dropout", "feature_alpha_dropout"), _DROPS),
    "stochastic_depth": (("p", 1), ("training", 3)),
    "rrelu": (("upper", 2), ("training", 3)),
    "scaled_dot_product_attention": (("dropout_p", 4), None),
    "multi_head_attention_forward": (("dropout_p", 9), ("training", 12)),
}


def operation_problems(half: Half) -> list[Problem]:
    """Judge the functional operations of a half, and its writes into its own state."""
    graph = half._sfl_graph
    found = []
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            what = _what(node, half)
            if what is not None:
                found.append(Problem(node.meta["scope"], *what))
    state = {name for name, _ in (*half.named_parameters(), *half.named_buffers())}
    for home in sorted(home for home in effects(graph, half).written if isinstance(home, str)):
        if home in state:
            fix = "keep state out of the client half, or write it in train mode only and freeze it"
            found.append(Problem(home, "the forward writes into it", fix))
    return found


def _what(node: fx.Node, half: Half) -> tuple[str, str] | None:
    name = node.target if isinstance(node.target, str) else node.target.__name__
    place = f"`{name}` ({node.meta['where']})"
    if name in _ALWAYS_RANDOM:
        return f"{place} draws anew in every forward", "remove it from the client half"
    if name in _SOMETIMES_RANDOM:
        rate, mode = _SOMETIMES_RANDOM[name]
        drawn = _value(_passed(node, *rate), half)
        active = mode is None or _value(_passed(node, *mode), half)
        if active and (drawn is None or drawn > 0):
            return f"{place} draws anew in every forward", RANDOM_FIX
    elif _drops(node, half):
        return f"{place} draws anew in every forward", RANDOM_FIX
    if name in ("batch_norm", "instance_norm"):
        flag = "training" if name == "batch_norm" else "use_input_stats"
        tracked = argument(node, "running_mean") is not None
        if _value(argument(node, flag), half) and (tracked or name == "batch_norm"):
            return f"{place} uses the statistics of the batch", EVAL_FIX
    return None


def _drops(node: fx.Node, half: nn.Module) -> bool:
    """Tell whether a function that is kept whole is passed a dropout rate above 0 in train mode.

    Such as torchvision's attention in windows, whose body no recording shows: only the names of its
    arguments do.
    """
    if node.op != "call_function" or not _value(argument(node, "training"), half):
        return False
    try:
        names = [*inspect.signature(cast(Callable[..., Any], node.target)).parameters]
    except (TypeError, ValueError):  # a function of C may hide them
        names = [*node.kwargs]
    rates = [argument(node, name) for name in names if "drop" in name]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def _passed(node: fx.Node, name: str, place: int) -> Any:
    """Return an argument by name, or by ``place`` for native operations, which hide their names."""
    value = argument(node, name)
    if value is None:
        value = node.args[place] if len(node.args) > place else node.kwargs.get("train", 0)
    return value


def _value(value: Any, half: nn.Module) -> Any:
    """Resolve a recorded flag, which may be the ``training`` of a module of the half."""
    if not isinstance(value, fx.Node):
        return value
    if value.op == "get_attr":
        path, _, last = str(value.target).rpartition(".")
        return getattr(half.get_submodule(path), last)
    if value.target is operator.not_:
        return not _value(value.args[0], half)
    return None
