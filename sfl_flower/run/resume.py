"""Going on with a run from what is in its directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from logging import getLogger

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import DataError
from sfl_flower.options import check_choice
from sfl_flower.report import History, RoundRecord, RunDirectory
from sfl_flower.report.asked_file import Asked
from sfl_flower.report.run_directory import HISTORY
from sfl_flower.server.strategy import SplitStrategy

__all__ = ["RESUME", "go_on", "which_checkpoint"]

RESUME = ("last", "previous")
"""The checkpoints that a resume may begin at."""

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


def go_on(
    directory: RunDirectory,
    strategy: SplitStrategy,
    resume: str,
    first: Callable[[History], None] = lambda history: None,
) -> History:
    """Bring a strategy to a checkpoint of its directory.

    Parameters
    ----------
    directory : RunDirectory
        Opened with `RunDirectory.reopen`.
    strategy : SplitStrategy
        Not begun yet.
    resume : {"last", "previous"}
        Which checkpoint. The previous one takes the place of the last.
    first : callable, optional
        Told of the records up to the checkpoint before anything is written; what it raises leaves
        the directory as it was.

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
        asked = _asked(strategy, directory)
        first(_records(directory, lines))
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
        asked = _asked(strategy, directory)
        first(History())
    directory.begin()
    _spend_again(asked, strategy, directory)
    return directory.keep_history(lines)


def _records(directory: RunDirectory, lines: int) -> History:
    """Return the first records of a history, which fit its checkpoint; behind them it may not."""
    if not lines:
        return History()
    data = (directory.path / HISTORY).read_bytes().split(b"\n")[:lines]
    return History([RoundRecord.from_json(line.decode()) for line in data])


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


def _asked(strategy: SplitStrategy, directory: RunDirectory) -> list[Asked]:
    """Return what clients were asked for that costs privacy; nothing of a run without noise.

    Raises
    ------
    DataError
        If not all of it is there: epsilon would be too low.
    """
    spending = vars(strategy).get("spending")
    if spending is None or not spending.statement:
        return []
    found = directory.asked.load()
    if len(found) < spending.asked:
        raise directory.asked.unlike(f"{len(found)} of the checkpoint's {spending.asked} lines")
    done, last = 0, max((each.round for each in found), default=0)
    with suppress(DataError):  # a history that cannot be read loses no checkpoint
        done = max((record.round for record in directory.history), default=0)
    if done > last:
        raise directory.asked.unlike(f"it ends at round {last}, and the history at {done}")
    return found


def _spend_again(asked: Sequence[Asked], strategy: SplitStrategy, directory: RunDirectory) -> None:
    """Count the privacy that a run spent behind the checkpoint from which it goes on."""
    spending = vars(strategy).get("spending")
    if spending is None:
        return
    spending.keep = directory.asked.append
    known, behind = asked[: spending.asked], asked[spending.asked :]
    if not behind:
        return
    spending.go_on(asked)
    if vars(strategy.settings).get("pipeline"):
        # Probes of the checkpoint's round were asked for in the one behind it, and will be again.
        for each in [each for each in known if each.round == strategy.round][-1:]:
            spending.ask(each)
    if not spending.central:
        _log.warning(
            "Noise that clients add for privacy is secret and drawn anew, so the run does not go "
            "on to the same bits."
        )
    _log.warning(
        "Behind the checkpoint clients were asked for round %s; these count in epsilon as well.",
        ", ".join(str(each.round) for each in behind),
    )


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
