"""Calling callbacks, so that none of them can do harm to a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger
from typing import Any

from sfl_flower.callbacks.callback import Callback, Ended, Run, Written
from sfl_flower.errors import ConfigError, SflError, printable
from sfl_flower.report.history import RoundRecord

__all__ = ["Hooks", "check_callbacks"]

_log = getLogger("flwr")


def check_callbacks(given: object) -> tuple[Callback, ...]:
    """Return callbacks as a tuple.

    Raises
    ------
    ConfigError
        If one is none, or is there twice.
    """
    if isinstance(given, Callback | str) or not isinstance(given, Iterable):
        raise ConfigError(f"callbacks is {given!r}; it must be a list of callbacks.")
    found: list[Callback] = []
    for each in given:
        if not isinstance(each, Callback):
            hint = "; write it with brackets behind" if isinstance(each, type) else ""
            raise ConfigError(
                f"callbacks holds {each!r}, which is no sfl_flower.Callback{hint}, such as "
                "EarlyStopping('accuracy')."
            )
        if any(each is other for other in found):
            raise ConfigError(f"callbacks holds one {_name(each)} twice; make another for each.")
        same = [other for other in found if each.claims() and each.claims() == other.claims()]
        if same:
            raise ConfigError(
                f"callbacks holds a {_name(same[0])} and a {_name(each)} that both write to "
                f"{each.claims()}; take one of them, or give one another place."
            )
        found.append(each)
    return tuple(found)


class Hooks:
    """The callbacks of one run.

    Parameters
    ----------
    callbacks : sequence of Callback
        Called in this order.
    run : Run
        What they are told of it, before it begins.

    Attributes
    ----------
    say : callable
        Writes a sentence into the next record; nothing, until another takes its place.
    why : str
        Why a callback ended the run, a sentence without its full stop; "" where none did.

    Raises
    ------
    ConfigError
        If a callback refuses the run.
    """

    def __init__(self, callbacks: Sequence[Callback], run: Run) -> None:
        self._given = tuple(callbacks)
        self._live: list[Callback] = []  # those that have begun, and have not failed
        self._run, self.why = run, ""
        self.say: Callable[[str], None] = _nowhere
        for callback in self._given:
            _refusing(callback, "check", run)

    def begin(self, history: Iterable[RoundRecord]) -> str:
        """Tell that the run begins, or goes on behind these records.

        Returns
        -------
        str
            Why it is over already, as `stop` says it; "" where it is not.

        Raises
        ------
        ConfigError
            If a callback cannot begin.
        """
        if not self._given:
            return ""
        records = tuple(record.frozen() for record in history)
        run = replace(self._run, history=records)
        for callback in self._given:
            _refusing(callback, "on_begin", run)
            self._live.append(callback)
        for record in records:
            self.stop(record)
        return self.why

    def stop(self, record: RoundRecord) -> str:
        """Return why a round is to be the last, "" where it is not; every callback is asked."""
        said = []
        for callback in self._live.copy():
            why = self._call(callback, "stop", record.frozen(), at=record.round)
            if why:
                said.append(f"{_name(callback)}: {printable(str(why)).rstrip('.')}")
        self.why = "; ".join(said)
        return self.why

    def kept(self, record: RoundRecord) -> None:
        """Tell of a record that was kept."""
        for callback in self._live.copy():
            hooks = ("on_evaluation", "on_round") if record.metrics else ("on_round",)
            for hook in hooks:
                if any(each is callback for each in self._live):  # it may have lost its place
                    self._call(callback, hook, record.frozen(), at=record.round)

    def saved(self, written: Written) -> None:
        """Tell of a checkpoint."""
        for callback in self._live.copy():
            self._call(callback, "on_checkpoint", written, at=written.round)

    @contextmanager
    def broken_off(self) -> Iterator[None]:
        """Tell of the end of a run that is broken off within a block."""
        try:
            yield
        except BaseException as error:
            self.end(Ended(_said(error), failed=True))
            raise

    def end(self, ended: Ended) -> None:
        """Tell those that have begun of the end; whoever was told is not told again."""
        for callback in self._live.copy():
            self._call(callback, "on_end", ended)
        self._live.clear()

    def _call(self, callback: Callback, hook: str, what: Any, at: int | None = None) -> Any:
        try:
            return getattr(callback, hook)(what)
        except Exception as error:
            self._live = [each for each in self._live if each is not callback]
            when = "" if at is None else f" of round {at}"
            text = (
                f"Callback {_name(callback)} failed in {hook}{when} ({_said(error)}); it is not "
                "called again, and the run goes on without it."
            )
            _log.warning("%s", text)
            self.say(text)
            return None


def _refusing(callback: Callback, hook: str, run: Run) -> None:
    try:
        getattr(callback, hook)(run)
    except SflError:
        raise
    except Exception as error:
        raise ConfigError(
            f"Callback {_name(callback)} cannot begin ({_said(error)}); nothing was trained: leave "
            "it out, or see to what it says."
        ) from error


def _name(callback: Callback) -> str:
    return type(callback).__name__


def _said(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}", 300)


def _nowhere(text: str) -> None:
    """Write nothing down."""
