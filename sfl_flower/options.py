"""What an option may be: ranges and choices, said beside the field and checked from there.

A settings dataclass annotates its fields, ``probes: Annotated[int, Range(1, 4096)] = 4``; the base
class checks every value (`check_options`), and ``sfl options`` shows the same words as the errors.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from sfl_flower.errors import ConfigError

__all__ = [
    "Amount",
    "Choice",
    "ClientMode",
    "ClientState",
    "Count",
    "Decay",
    "Form",
    "Minibatches",
    "Momentum",
    "Natural",
    "Range",
    "Rate",
    "Steps",
    "check_choice",
    "check_options",
    "check_range",
    "choices",
    "coerce",
    "legal_values",
    "nearest",
    "read_fields",
    "type_in_words",
    "unknown",
]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, all of them finite."""

    low: float
    high: float = math.inf

    def check(self, name: str, value: Any) -> None:
        """Raise `ConfigError` unless the value is in the range."""
        check_range(name, value, self.low, self.high)

    def text(self, kind: type[Any]) -> str:
        """Return the range in words: whole numbers are never called finite, nor rounded."""
        low, high, infinite = self.low, self.high, math.isinf(self.high)
        if kind is int:
            return f"at least {int(low)}" if infinite else f"in [{int(low)}, {int(high)}]"
        return f"finite, at least {low:g}" if infinite else f"in [{low:g}, {high:g}]"


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    legal: tuple[str, ...]

    def __init__(self, legal: Iterable[str]) -> None:
        object.__setattr__(self, "legal", tuple(legal))

    def check(self, name: str, value: Any) -> None:
        """Raise `ConfigError` unless the value is one of the texts."""
        check_choice(name, value, self.legal)

    def text(self, kind: type[Any]) -> str:
        """Return the texts."""
        return ", ".join(self.legal)


@dataclass(frozen=True)
class Form:
    """Values that something else checks; here it is only said what they look like."""

    said: str

    def check(self, name: str, value: Any) -> None:
        """Do nothing."""

    def text(self, kind: type[Any]) -> str:
        """Return what they look like."""
        return self.said


UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
"""Binary units of memory."""


@dataclass(frozen=True)
class Amount:
    """``all`` samples, a number of them, or the memory that they may take, ``64MiB``."""

    def check(self, name: str, value: str) -> None:
        """Raise `ConfigError` unless the value is one of the three."""
        if not self.samples(value) and not self.budget(value) and value != "all":
            raise ConfigError(f"{name} is '{value}'; it must be {self.text(str)}.")

    def text(self, kind: type[Any]) -> str:
        """Return the three in words."""
        return f"all, a number of samples from 1, or memory in {', '.join(UNITS)} such as 64MiB"

    @staticmethod
    def samples(value: str) -> int:
        """Return the number of samples, 0 where the value is none."""
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else 0

    @staticmethod
    def budget(value: str) -> int:
        """Return the bytes, 0 where the value is no memory."""
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMG]iB)", value, re.ASCII)
        return int(float(found[1]) * UNITS[found[2]]) if found else 0


Legal = Range | Choice | Form | Amount

Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Rate = Annotated[float, Range(0, 1e6)]
Momentum = Annotated[float, Range(0, 0.9999)]
Decay = Annotated[float, Range(0, 1e3)]
Steps = Annotated[int, Range(0, 10**6)]
Minibatches = Annotated[int, Range(1, 4096)]
ClientMode = Annotated[str, Choice(("as_built", "eval"))]
ClientState = Annotated[str, Choice(("fresh", "kept"))]

_PLAIN: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def _plain(kind: Any) -> Any:
    """Return the type of an option that may be None as well."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _annotations(cls: type[Any]) -> dict[str, tuple[Any, Legal | None]]:
    """Return each field's type, and what is said of its legal values."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        said = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Legal)]
        kind = hint.__origin__ if hasattr(hint, "__metadata__") else hint
        found[name] = (kind, said[0] if said else None)
    return {field.name: found[field.name] for field in fields(cls)}


def legal_values(cls: type[Any]) -> dict[str, str]:
    """Return in words what each option of a settings dataclass may be.

    An option that says no more than its type is "a number", "a text" and so on.
    """
    found = {}
    for name, (kind, legal) in _annotations(cls).items():
        plain = _plain(kind)
        text = legal.text(plain) if legal else type_in_words(plain)
        found[name] = text if plain is kind else f"{text}, or none"
    return found


def type_in_words(kind: Any) -> str:
    """Return what values of a type are called: "a whole number", "a text or none"."""
    plain = _plain(kind)
    text = _PLAIN.get(plain, getattr(plain, "__name__", str(plain)))
    return text if plain is kind else f"{text}, or none"


def choices(cls: type[Any], name: str) -> tuple[str, ...]:
    """Return the texts that an option may be, none where it is no choice."""
    legal = _annotations(cls)[name][1]
    return legal.legal if isinstance(legal, Choice) else ()


def check_options(settings: Any) -> None:
    """Check every field of a settings dataclass against its annotation.

    Raises
    ------
    ConfigError
        If a value is not legal.
    """
    for name, (_, legal) in _annotations(type(settings)).items():
        value = getattr(settings, name)
        if legal is not None and value is not None:
            legal.check(name, value)


def unknown(kind: str, name: object, legal: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not among the legal ones."""
    names = sorted(legal)
    near = nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return ConfigError(f"Unknown {kind} '{name}'; legal are {', '.join(names)}.{hint}")


def nearest(name: object, legal: Iterable[str]) -> str:
    """Return the legal name that is most like this one, whatever its case; "" if none is."""
    names = {known.lower().replace("-", "_"): known for known in legal}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), names, n=1)
    return names[near[0]] if near else ""


def check_choice(name: str, value: str, legal: Iterable[str]) -> None:
    """Raise `ConfigError` unless the value of this option is one of the legal ones."""
    if value not in (names := tuple(legal)):
        raise ConfigError(f"{name} is '{value}'; it must be one of {', '.join(names)}.")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `ConfigError` unless low <= value <= high."""
    if not low <= value <= high or math.isinf(value):
        raise ConfigError(f"{name} is {value}; it must be {Range(low, high).text(type(value))}.")


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Turn a text from the command line, or a number from TOML, into the type of a field.

    Raises
    ------
    ConfigError
        If it cannot be one.
    """
    plain = _plain(kind)
    if plain is not kind and (
        value is None or (isinstance(value, str) and value.lower() == "none")
    ):
        return None
    try:
        if plain is bool:
            if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
                return value.lower() in ("true", "1")
            if isinstance(value, bool):
                return value
        elif plain is int:
            # Texts and whole numbers as they are: a float holds none above 2**53 exactly.
            exact = isinstance(value, str | int) and not isinstance(value, bool)
            if exact or (not isinstance(value, bool) and int(value) == float(value)):
                return int(value)
        elif plain is float:
            if not isinstance(value, bool):
                return float(value)
        elif plain is str and isinstance(value, str):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{name} is {value!r}; it must be {type_in_words(plain)}.")


T = typing.TypeVar("T")


def read_fields(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a settings dataclass from a mapping.

    Raises
    ------
    ConfigError
        If a key is no field of the dataclass, or a value has the wrong type or range.
    """
    kinds = _annotations(cls)
    read = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise unknown(f"option of {where}", key, kinds)
        kind, legal = kinds[name]
        given = str(value) if isinstance(legal, Amount) and type(value) is int else value
        read[name] = coerce(name, given, kind)
    return cls(**read)
