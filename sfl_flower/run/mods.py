"""Which of Flower's client mods compose with the messages of this package, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from flwr.app import Context, Message

from sfl_flower.errors import ConfigError

__all__ = ["Mod", "check_mods"]

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
"""Flower's type of a client mod: it gets a message, the context, and what to call next."""

_CLIPS = (
    "it compares the arrays of a reply with those of its request, name by name, and messages of "
    "split learning hold different ones; to clip or noise what a client sends use "
    "make_client_app(..., postprocess=...), and clip-norm of ho_sfl and heron"
)
_SUMS = (
    "it adds up vectors of weights in messages of Flower's older form, and the messages here have "
    "another; there is no secure sum in this package"
)
REFUSED: dict[str, str] = {
    "fixedclipping_mod": _CLIPS,
    "adaptiveclipping_mod": _CLIPS,
    "LocalDpMod": _CLIPS,
    "secagg_mod": _SUMS,
    "secaggplus_mod": _SUMS,
}
"""Flower's mods that break every exchange, the join included, by the name of function or class."""


def check_mods(mods: Sequence[Mod]) -> list[Mod]:
    """Return the mods of a ClientApp as a list, none of them one that cannot work.

    Parameters
    ----------
    mods : sequence of callable
        As Flower's `ClientApp` takes them; the first is the outermost.

    Raises
    ------
    ConfigError
        If one is known to break the exchanges, or cannot be called.
    """
    for mod in mods:
        if not callable(mod):
            raise ConfigError(
                f"mods holds {mod!r}, which cannot be called; a mod is a function of a message, "
                "a context and what to call next."
            )
        for name in _names(mod):
            if name in REFUSED:
                raise ConfigError(f"Flower's {name} does not work here: {REFUSED[name]}.")
    return list(mods)


def _names(mod: Mod) -> list[str]:
    """Return the names that a mod of Flower's goes by, none for others."""
    inner: object = mod
    while isinstance(inner, partial):
        inner = inner.func
    kinds = [inner] if hasattr(inner, "__name__") else type(inner).__mro__
    return [kind.__name__ for kind in kinds if kind.__module__.startswith("flwr.")]
