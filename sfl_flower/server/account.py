"""What a run has cost and brought so far: its ledger, a record a round, and whether it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sfl_flower.config import RunConfig
from sfl_flower.errors import TrainingError
from sfl_flower.report import RoundRecord
from sfl_flower.server.checkpoint import Progress
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.tally import Tally
from sfl_flower.server.unwrapped import RunOver
from sfl_flower.training.measures import diverged
from sfl_flower.wire import Ledger, Usage

__all__ = ["Account"]


class Account:
    """The books of a run.

    Parameters
    ----------
    config : RunConfig
        Says how many rounds there are, and how many may pass without a reply that is used.
    on_round : callable, optional
        Called with the record of each round, round 0 (before training) included.

    Attributes
    ----------
    ledger : Ledger
        Bytes, exchanges and samples.
    records : list of RoundRecord
        A record for each round since the run began or went on.
    first : int
        The round after which it began or went on.
    judge : callable
        Asked with the record of each round, before it is kept, why the round is to be the last; ""
        where the run goes on, which it always does until another takes its place.
    ended : str
        What ended the run before its last round, in sentences; "" where nothing did.
    """

    def __init__(
        self, config: RunConfig, on_round: Callable[[RoundRecord], None] | None = None
    ) -> None:
        self.ledger = Ledger()
        self.records: list[RoundRecord] = []
        self.first = 0
        self._rounds, self._patience = config.rounds, config.patience
        self._on_round = on_round
        self.judge: Callable[[RoundRecord], str] = _go_on
        self.ended = ""
        self._replies, self._empty = 0, 0
        self._joins, self._again = 0, 0
        self._flops = 0
        self._untrained: float | None = None
        self._said: list[str] = []
        self._outcome, self._tally = Outcome([], 0, {}), Tally()
        self._began = time.monotonic()

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def go_on(self, progress: Progress) -> None:
        """Go on from where a checkpoint was made."""
        self.ledger, self.first = progress.ledger, progress.round
        self._replies = progress.replies
        self._joins = self._again = progress.joins
        self._untrained = progress.untrained
        self._began = time.monotonic() - progress.seconds

    def progress(self, round: int) -> Progress:
        """Return what `go_on` takes, at the end of a round."""
        seconds = self.records[-1].seconds if self.records else 0.0
        counts = (self._replies, self._joins, self.ledger)
        return Progress(round, seconds, *counts, self._untrained)

    def say(self, text: str) -> None:
        """Add a note to the next record."""
        self._said.append(text)

    def metrics(self) -> dict[str, Any]:
        """Return what Flower is told of the last round."""
        record = self.records[-1]
        found = {"samples": record.samples, "num-examples": max(1, self._outcome.samples)}
        return found if record.loss is None else {**found, "loss": record.loss}

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Run a block in which nodes are asked who they are.

        After a resume all are asked once more: bytes that cross are bytes, but the exchanges of the
        run are those of one that never stopped.
        """
        before = self.ledger.exchanges
        yield
        answers = self.ledger.exchanges - before
        again = min(answers, self._again)
        self._again -= again
        self._joins += answers - again
        self.ledger.exchanges -= again

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Run a block of exchanges that a run that never stopped does not have."""
        before = self.ledger.exchanges
        yield
        self.ledger.exchanges = before

    def end(self, round: int, why: str) -> None:
        """Let a round be the last; `why` is what the log says after it."""
        self._rounds, self.ended = round, why

    def begin_round(self, number: int) -> int:
        """Return the round that comes `number` rounds after the run began or went on.

        Raises
        ------
        RunOver
            If the run was ended before it.
        """
        round = self.first + number
        if self.ended and self.over(round - 1):
            raise RunOver(self.ended)
        return round

    def over(self, round: int) -> bool:
        """Tell whether no round comes after this one."""
        return round >= self._rounds

    def metering(self, round: int) -> str:
        """Return what clients measure in a round: memory in the first, operations in the second."""
        return {1: "memory", 2: "flops"}.get(round - self.first, "none")

    def book_usage(self, usages: Iterable[Usage]) -> None:
        """Book what clients measured in this round."""
        for usage in usages:
            peak = max(self.ledger.client_peak_bytes, usage.peak_bytes)
            self.ledger.client_peak_bytes = peak
            self._flops += usage.flops

    def close(self, round: int, outcome: Outcome, tally: Tally) -> None:
        """Book a round.

        Raises
        ------
        TrainingError
            If no reply was used for too many rounds in a row, or in the whole run.
        """
        self._outcome, self._tally = outcome, tally
        self.ledger.samples += outcome.samples
        if self._flops and outcome.samples:
            self.ledger.client_flops = self._flops / outcome.samples
        self._flops = 0
        # Replies, not samples: smashed data that train the server half are no client that learns.
        self._replies += 0 if tally.early else tally.used
        self._empty = 0 if tally.used else self._empty + 1
        if self._empty >= self._patience:
            what = f"in {self._empty} rounds in a row, so training stops at round {round}"
        elif self.over(round) and not self._replies:
            what = f"in any of the {round} rounds, so no client has trained anything"
        else:
            return
        reason = tally.notes[0] if tally.notes else "no client answered"
        raise TrainingError(f"No usable reply {what}; the last reason: {reason}")

    def record(
        self,
        round: int,
        due: bool,
        evaluate: Callable[[], dict[str, float]],
        version: int,
        digest: str,
    ) -> None:
        """Add the record of a round.

        Parameters
        ----------
        round : int
            Its number.
        due : bool
            Whether it is evaluated; one that turns out to be the last is in any case.
        evaluate : callable
            Gives loss and metrics of the whole model.
        version, digest : int, str
            Version of the client half and the journal's digest after it.
        """
        metrics = self._evaluated(round, evaluate) if due else {}
        at = round, version, digest, time.monotonic() - self._began
        why = self.judge(self._record(*at, metrics))
        if why and not self.over(round):
            self._tally.note(f"{why}, so this round is the last.")
            self.end(round, f"The run is over. {why}.")
            metrics = metrics or self._evaluated(round, evaluate)
        record = self._record(*at, metrics)
        self._said.clear()
        self.records.append(record)
        if self._on_round:
            self._on_round(record)

    def _evaluated(self, round: int, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        metrics = evaluate()
        if self._untrained is None and round == 0:
            self._untrained = metrics.get("loss")
        if worse := diverged(metrics, self._untrained or 0.0):
            self._tally.note(worse)
        return metrics

    def _record(
        self, round: int, version: int, digest: str, seconds: float, metrics: dict[str, float]
    ) -> RoundRecord:
        outcome, tally, ledger = self._outcome, self._tally, self.ledger
        losses = outcome.losses
        return RoundRecord(
            round=round,
            samples=ledger.samples,
            exchanges=ledger.exchanges,
            seconds=seconds,
            loss=sum(losses) / len(losses) if losses else None,
            metrics=metrics,
            bytes_up=ledger.bytes_up,
            bytes_down=ledger.bytes_down,
            replies=tally.used,
            failures=tally.failures,
            rejected=tally.rejected,
            notes=(*self._said, *tally.told()),
            version=version,
            digest=digest,
            extra=dict(outcome.extra),
            clients={what: tuple(sorted(found)) for what, found in sorted(tally.marks.items())},
            client_peak_bytes=ledger.client_peak_bytes,
        )


def _go_on(record: RoundRecord) -> str:
    """End no run."""
    return ""
