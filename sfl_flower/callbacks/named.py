"""Callbacks as texts, for the command line and the run configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, get_type_hints

from sfl_flower.callbacks.best_checkpoint import BestCheckpoint
from sfl_flower.callbacks.budget import Budget
from sfl_flower.callbacks.callback import Callback
from sfl_flower.callbacks.csv_logger import CSVLogger
from sfl_flower.callbacks.early_stopping import EarlyStopping
from sfl_flower.callbacks.mlflow import MLflow
from sfl_flower.callbacks.tensorboard import TensorBoard
from sfl_flower.callbacks.trackio import Trackio
from sfl_flower.callbacks.wandb import WandB
from sfl_flower.errors import ConfigError, SflError
from sfl_flower.options import coerce, unknown

__all__ = ["CALLBACKS", "read_callbacks"]

CALLBACKS: Mapping[str, Any] = {
    "early_stopping": EarlyStopping,
    "best_checkpoint": BestCheckpoint,
    "budget": Budget,
    "csv": CSVLogger,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""Those that come with the package, by the names that texts give them."""


def imported(text: str) -> Any:
    """Return what ``module:name`` names.

    Raises
    ------
    ConfigError
        If the module cannot be imported, or has no such name.
    """
    module, _, name = text.partition(":")
    try:
        return getattr(import_module(module), name)
    except SflError:
        raise
    except Exception as error:
        raise ConfigError(f"callback '{text}' cannot be imported: {error}") from error


def read_callbacks(
    texts: Iterable[str], find: Callable[[str], Any] = imported
) -> tuple[Callback, ...]:
    """Return the callbacks that texts describe.

    Parameters
    ----------
    texts : iterable of str
        ``NAME``, or ``NAME:VALUE,KEY=VALUE,...`` with a name in `CALLBACKS`, whose values are those
        of its parameters, in their order or by name; or ``MODULE:NAME`` of a callback of your own,
        or of what makes one.
    find : callable
        Gives what such a text names.

    Raises
    ------
    ConfigError
        If a text is none of these, or a value is not legal.

    Examples
    --------
    >>> read_callbacks(["early_stopping:loss,patience=3"])
    (EarlyStopping(metric='loss', patience=3, min_delta=0.0, mode='auto'),)
    """
    return tuple(_read(text, find) for text in texts)


def _read(text: str, find: Callable[[str], Any]) -> Callback:
    name, colon, rest = text.partition(":")
    kind = CALLBACKS.get(name.replace("-", "_"))
    if kind is not None:
        made: Callback = kind(**_values(kind, name, rest))
        return made
    if not colon or not name or not rest:
        raise unknown("callback", text, CALLBACKS)
    found = find(text)
    if not isinstance(found, Callback) and callable(found):
        try:
            found = found()
        except SflError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ConfigError(f"callback '{text}' cannot be made: {said}") from error
    if not isinstance(found, Callback):
        raise ConfigError(
            f"callback '{text}' is a {type(found).__name__}; it must be a sfl_flower.Callback, or "
            "what makes one when it is called."
        )
    return found


def _values(kind: Any, name: str, text: str) -> dict[str, Any]:
    """Return the parameters in a text such as ``accuracy,patience=5``."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    found: dict[str, Any] = {}
    keyed = False
    for place, part in enumerate(text.split(",") if text else []):
        key, equals, value = part.partition("=")
        if not equals:
            if keyed or place >= len(names):
                raise ConfigError(
                    f"callback '{name}' got '{part}'; it takes values in the order "
                    f"{', '.join(names)}, and then KEY=VALUE."
                )
            key, value = names[place], part
        keyed = keyed or bool(equals)
        key = key.strip().replace("-", "_")
        if key not in names:
            raise unknown(f"parameter of callback '{name}'", key, names)
        if key in found:
            raise ConfigError(f"callback '{name}' got {key} twice; give it once.")
        plain = hints[key]
        found[key] = coerce(key, value.strip(), plain if plain in (bool, int, float) else str)
    if missing := [f.name for f in fields(kind) if f.name not in found and _needed(f)]:
        raise ConfigError(f"callback '{name}' lacks {missing[0]}; write {name}:{missing[0]}=VALUE.")
    return found


def _needed(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
