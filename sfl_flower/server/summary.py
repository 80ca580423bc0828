"""What the log says of a run before its first round."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO, getLogger

from torch import nn

from sfl_flower.config import RunConfig
from sfl_flower.server.frozen_parameters import counts

__all__ = ["log_summary"]

_log = getLogger("flwr")


def log_summary(
    method: str,
    task: str,
    config: RunConfig,
    client: nn.Module,
    server: nn.Module,
    warnings: Iterable[str],
) -> None:
    """Log what is trained and how, and what to mind.

    Parameters
    ----------
    method, task : str
        Their names.
    config : RunConfig
        Settings of the run.
    client, server : nn.Module
        The halves.
    warnings : iterable of str
        Sentences, empty ones left out.
    """
    _log.log(INFO, "\t├──> Method: %s, task: %s", method, task)
    pairs = [counts(module) for module in (client, server)]
    sizes = [f"{count} ({trained} trained)" for count, trained in pairs]
    _log.log(INFO, "\t├──> Parameters: client half %s, server half %s", *sizes)
    _log.log(
        INFO,
        "\t└──> Clients: %d of %d per round, batch size %d",
        config.cohort,
        config.clients,
        config.batch_size,
    )
    for warning in filter(None, warnings):
        _log.warning(warning)
