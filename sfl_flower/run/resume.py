"""Going on with a run from what is in its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from logging import getLogger

from sfl_flower.config import RunConfig, Settings
from sfl_flower.options import check_choice
from sfl_flower.report import History, RunDirectory
from sfl_flower.server.strategy import SplitStrategy

__all__ = ["RESUME", "go_on", "which_checkpoint"]

RESUME = ("last", "previous")
"""The checkpoints that a resume may begin at."""

_FROM, _TO, _TIMES = "again_from", "again_to", "again_times"
"""Of rounds that count again: the one before the first, the last, and how many times they do."""
_log = getLogger("flwr")


def which_checkpoint(resume: bool | str) -> str:
    """Return which checkpoint to go on from, empty for a new run.

    Parameters
    ----------
    resume : bool or str
        True means the last.

    Raises
    ------
    ConfigError
        If it is another text.
    """
    if isinstance(resume, bool) or not resume:
        return "last" if resume else ""
    check_choice("resume", resume, RESUME)
    return resume


def go_on(directory: RunDirectory, strategy: SplitStrategy, resume: str) -> History:
    """Bring a strategy to a checkpoint of its directory.

    Parameters
    ----------
    directory : RunDirectory
        Opened with `RunDirectory.reopen`.
    strategy : SplitStrategy
        Not begun yet.
    resume : {"last", "previous"}
        Which checkpoint. The previous one takes the place of the last.

    Returns
    -------
    History
        The records up to the checkpoint.

    Raises
    ------
    SflError
        If the checkpoint, or what belongs to it, is missing or damaged, or belongs to another run;
        what is in the directory is then unchanged.
    """
    checkpoints = directory.checkpoints
    previous, lines = resume == "previous", 0
    if previous or checkpoints.last.exists():
        tensors, values, lines = directory.load_checkpoint(previous)
        strategy.resume(tensors, values)
        if previous:
            checkpoints.fall_back()
        if strategy.round < strategy.config.rounds:
            for text in _begins_anew(strategy.settings):
                _log.warning("%s", text)
                strategy.account.say(text)
        if not lines:
            _log.warning(
                "%s has no history of the %d rounds up to its checkpoint; it begins at the next.",
                directory.path,
                strategy.round,
            )
    else:
        _check_early(directory, strategy.config)
    directory.begin(**_spend_again(strategy, directory))
    return directory.keep_history(lines)


def _begins_anew(settings: Settings) -> Iterator[str]:
    """Yield what of a run is on its clients and not in a checkpoint, so that it begins anew.

    Parameters
    ----------
    settings : Settings
        Of the method.
    """
    told = vars(settings)
    if settings.keeps_client_state:
        yield (
            "Client optimisers under client-state=kept are on the clients, not in the checkpoint; "
            f"the state of {told.get('client_optimizer', 'each')} begins anew on every client, so "
            "the run does not go on to the same bits."
        )
    if told.get("temporal"):
        yield (
            f"What clients sent of their samples, temporal={told['temporal']:g}, is not in the "
            "checkpoint; it is sent anew, so the run does not go on to the same bits."
        )


def _spend_again(strategy: SplitStrategy, directory: RunDirectory) -> Mapping[str, int]:
    """Count the privacy that a run spent in rounds which it now does again.

    Returns what a later resume has to know of this one: the history forgets these rounds.
    """
    spending = vars(strategy).get("spending")
    if spending is None or not spending.statement:
        return {}
    # The first line is that before training; of a run that was broken off, clients may have been
    # asked for the round behind the last one. Pipelined, it also asks for probes of that.
    asked = directory.lines - (1 if directory.finished else 0)
    last, done = min(asked, strategy.config.rounds), strategy.round
    if last <= done:
        return {}
    first = max(1, done + (0 if vars(strategy.settings).get("pipeline") else 1))
    times, known = 1, directory.measured
    if known.get(_FROM, -1) >= done:  # broken off behind this checkpoint before
        last, times = max(last, known.get(_TO, last)), known.get(_TIMES, 1) + 1
    spending.repeat([*range(first, last + 1)] * times)
    if not spending.central:
        _log.warning(
            "Noise that clients add for privacy is secret and drawn anew, so the run does not go "
            "on to the same bits."
        )
    _log.warning(
        "Rounds %d to %d, which clients may have been asked for before, count %d times in epsilon.",
        first,
        last,
        times + 1,
    )
    return {_FROM: done, _TO: last, _TIMES: times}


def _check_early(directory: RunDirectory, config: RunConfig) -> None:
    """Refuse to begin anew unless the run was broken off before its first checkpoint."""
    history = directory.history
    every = config.checkpoint_every
    # A checkpoint is written after its round's record, so a later record shows that it was.
    due = [r.round for r in history if r.round and (r.round % every == 0 if every else r.metrics)]
    if directory.checkpoints.previous.exists() or (due and history[-1].round > due[0]):
        raise directory.checkpoints.without(
            f"{directory.path} has records up to round {history[-1].round if history else 0} and "
            f"no {directory.checkpoints.last.name}."
        )
    if history:
        _log.warning(
            "%s holds no checkpoint: the run was broken off in round %d, before its first one, so "
            "it begins anew and its %d records are written anew.",
            directory.path,
            history[-1].round,
            len(history),
        )
