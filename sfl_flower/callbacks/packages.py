"""Packages that trackers need and the project does not."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sfl_flower.errors import ConfigError

__all__ = ["need"]


def need(module: str, extra: str) -> Any:
    """Return a module.

    Parameters
    ----------
    module : str
        Its name.
    extra : str
        The extra of this project that brings it.

    Raises
    ------
    ConfigError
        If it cannot be imported, with what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} cannot be imported ({error}); install it with pip install "
            f"'sfl-flower[{extra}]'."
        ) from error
