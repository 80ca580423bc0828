"""A Flower strategy that notices when another one wraps it.

Wrappers such as Flower's `DifferentialPrivacyServerSideFixedClipping` change the messages that
`configure_train` returns and the replies that `aggregate_train` gets.  A strategy that runs its
exchanges inside `configure_train` has none of either, so such a wrapper does nothing, and says
nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from sfl_flower.errors import ConfigError

__all__ = ["RunOver", "Unwrapped"]

_log = getLogger("flwr")


class RunOver(Exception):
    """Ends a run before a round that must not be; what was trained is its result."""


class Unwrapped(Strategy):
    """Base of a strategy whose own `start` must run; a wrapper calls its own, and the hooks."""

    _started = False

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds; arguments and result are those of Flower's `Strategy.start`.

        A run that is over before its last round has a result without arrays and metrics.
        """
        self._started = True
        try:
            return super().start(*args, **kwargs)
        except RunOver as over:
            _log.warning("%s", over)
            return Result()
        finally:
            self._started = False

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client: the server holds both halves and evaluates the whole model."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return None: clients evaluate nothing."""
        return None

    def check_unwrapped(self) -> None:
        """Refuse to run a round for a wrapper.

        Raises
        ------
        ConfigError
            If a round is asked for outside `start`.
        """
        if not self._started:
            raise ConfigError(
                f"A round of {type(self).__name__} was asked for outside its own start(), as "
                "Flower's DifferentialPrivacy wrappers and others do. They change the messages "
                "that configure_train returns; the exchanges here happen inside it, so a wrapper "
                "would protect nothing. Call start() of the strategy itself; to clip and noise "
                "what a sample tells use dp_clip and dp_noise of ho_sfl, heron and decomfl, and "
                "for what else a client sends make_client_app(..., postprocess=...)."
            )
