"""What a run has spent of each sample's privacy: in how many mini-batches each sample was.

Which samples a mini-batch has follows from keys that the server holds, so nothing is counted on a
draw: a sample that was in T mini-batches was in T Gaussian mechanisms, whoever knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfl_flower.config import RunConfig
from sfl_flower.data import generator, server_seed
from sfl_flower.errors import ConfigError
from sfl_flower.privacy.accounting import epsilon_of, most_times, noise_for
from sfl_flower.privacy.bounded import gaussian
from sfl_flower.report.asked_file import Asked
from sfl_flower.server.account import Account
from sfl_flower.server.facts import Facts
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.private import PrivacySettings
from sfl_flower.server.recall import MOST_SAMPLES
from sfl_flower.server.roster import Member, Roster, draw_cohort
from sfl_flower.server.tally import Tally
from sfl_flower.server.unwrapped import RunOver
from sfl_flower.wire.recall import rows_of_round
from sfl_flower.zo import Probing

__all__ = ["Spending"]

_COUNTS, _NOISE, _ASKED = "privacy.counts.", "privacy.noise", "privacy.asked"
Counts = NDArray[np.int64]
"""Of each sample of a client, in how many mini-batches it was."""


class Spending:
    """In how many mini-batches each sample was, and what that costs.

    Parameters
    ----------
    config : RunConfig
        Gives clients their keys, and the size of mini-batches.
    settings : PrivacySettings
        How much there is to spend, and how many mini-batches a client runs in a round.
    facts : Facts
        Of the method: whether labels reach the server.

    Attributes
    ----------
    noise : float
        σ; 0 while it is not yet known.
    asked : int
        How many times clients were asked for a round; all of these are in the counts.
    keep : callable
        Writes down what clients are about to be asked for, so that a run that is broken off goes
        on with all that it spent; nothing, until another takes its place.

    Raises
    ------
    ConfigError
        If the first mini-batch would exceed the limit, or dp-accounting is missing.
    """

    def __init__(self, config: RunConfig, settings: PrivacySettings, facts: Facts) -> None:
        self.noise = settings.dp_noise
        self._config, self._settings, self._facts = config, settings, facts
        self._counts: dict[int, Counts] = {}
        self.asked, self.keep = 0, _forget
        if settings.dp:
            once = noise_for(settings.dp_epsilon or 1.0, 1, settings.dp_delta)
            if settings.dp_epsilon and settings.dp_noise and not self._most:
                raise ConfigError(
                    f"dp_epsilon={settings.dp_epsilon:g} cannot be met with dp_noise="
                    f"{settings.dp_noise:g}: a single mini-batch costs a sample epsilon = "
                    f"{epsilon_of(settings.dp_noise, 1, settings.dp_delta):.4g} at delta = "
                    f"{settings.dp_delta:g}; set dp_noise to at least {once:.4g}, or leave it out."
                )

    @property
    def central(self) -> bool:
        """Whether the server adds the noise."""
        return self._settings.central

    @property
    def comparable(self) -> bool:
        """Whether scalars may be held against one another, and equal ones mean anything.

        What the server is yet to noise nobody is told of; and without noise a clip makes those of
        honest clients alike where they probe once: each sample brings either C or -C.
        """
        if self._settings.dp:
            return not self.central
        return not self._settings.dp_clip or vars(self._settings)["probes"] > 1

    @property
    def epsilon(self) -> float:
        """ε of the sample that was in the most mini-batches, of all clients."""
        most = max((int(counts.max()) for counts in self._counts.values()), default=0)
        return epsilon_of(self.noise, most, self._settings.dp_delta) if most else 0.0

    @property
    def statement(self) -> str:
        """What the run's ε is and what it covers, a sentence; empty without noise."""
        if not self._settings.dp:
            return ""
        beside = "labels" if self._facts.labels else "gradients that tell labels"
        covers = (
            "it covers all that clients tell of their samples"
            if self._facts.whole
            else f"it covers the scalars alone; smashed data and {beside} are sent in the clear"
        )
        return (
            f"epsilon = {self.epsilon:.4g} at delta = {self._settings.dp_delta:g} for each sample, "
            f"noise of {self.noise:.4g} by the {self._settings.dp_noise_by}: {covers}."
        )

    def of(self, probing: Probing) -> Probing:
        """Return how a mini-batch is probed, with what clients do for privacy."""
        noise = 0.0 if self.central else self.noise
        return replace(probing, clip=self._settings.dp_clip, noise=noise)

    def begin(
        self, round: int, cohort: Iterable[Member], roster: Roster, account: Account, tally: Tally
    ) -> None:
        """Count a round before anything is asked; it is the last where the next is too much.

        Parameters
        ----------
        round : int
            The round.
        cohort : iterable of Member
            Its clients.
        roster : Roster
            Knows who is there.
        account : Account
            Is told which round is the last.
        tally : Tally
            Hears of it.

        Raises
        ------
        RunOver
            If this round would exceed the limit.
        ConfigError
            If that is the first one.
        """
        if not self._settings.dp:
            return
        if not self.noise:
            self.noise = noise_for(
                self._settings.dp_epsilon, self._planned(roster.here), self._settings.dp_delta
            )
        if account.over(round - 1):  # also where those have gone for whom it was too much
            raise RunOver(f"The run is over. Up to here {self.statement}")
        if over := self._over(round, cohort):
            if not self._counts:
                raise ConfigError(
                    f"{over}; raise dp_epsilon or dp_noise, or use fewer mini-batches."
                )
            raise RunOver(f"{over}, so the run is over. Up to here {self.statement}")
        self.ask(Asked(round, self.noise, {each.partition: each.samples for each in cohort}))
        if not account.over(round) and (
            over := self._over(round + 1, roster.cohort(round + 1, roster.here))
        ):
            account.end(round)
            tally.note(f"{over}, so this round is the last. At its end {self.statement}")

    def closed(self, outcome: Outcome) -> Outcome:
        """Return what is reported of a round, with its ε."""
        own = {"epsilon": self.epsilon} if self._settings.dp else {}
        return replace(outcome, extra={**outcome.extra, **own})

    def shown(self, scalars: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return those of scalars, as they came, of which something may be told: none unnoised."""
        return scalars[:0] if self.central else scalars

    def noised(
        self,
        coefficients: NDArray[np.float64],
        scale: NDArray[np.float64],
        probing: Probing,
        round: int,
        partitions: Iterable[int],
    ) -> NDArray[np.float64]:
        """Return coefficients with the noise of the server, as they are where it adds none.

        Parameters
        ----------
        coefficients : numpy.ndarray
            float64, shape [streams, mini-batches, numbers]: a stream of each client, or one, the
            weighted sum of theirs.
        scale : numpy.ndarray
            By what each client's scalars were multiplied, float64, shape [clients].
        probing : Probing
            How the clients probed.
        round : int
            The round.
        partitions : iterable of int
            The clients.
        """
        if not self.central:
            return coefficients
        sizes = scale if len(coefficients) == len(scale) else scale.max(keepdims=True)
        deviations = self.noise * self.of(probing).sensitivity(self._config.batch_size) * sizes
        # Also by what it hides: the same noise on other numbers would be known by the difference.
        hidden = blake2b(coefficients.tobytes() + deviations.tobytes(), digest_size=16).hexdigest()
        seed = server_seed(self._config.seed)
        drawn = generator("privacy", seed, round, *partitions, hidden)
        return gaussian(coefficients, deviations[:, None, None], drawn)

    def ask(self, asked: Asked) -> None:
        """Write down and count what clients are about to be asked for."""
        self.keep(asked)
        self._count(asked)

    def go_on(self, asked: Sequence[Asked]) -> None:
        """Count what a run that was broken off had asked for behind the checkpoint.

        Parameters
        ----------
        asked : sequence of Asked
            All that the run wrote down, what is before the checkpoint included.
        """
        for each in asked[self.asked :]:
            self.noise = each.noise
            self._count(each)

    def tensors(self) -> dict[str, Tensor]:
        """Return what was spent as named tensors, for a checkpoint."""
        if not self._settings.dp:
            return {}
        counts = {f"{_COUNTS}{at}": torch.from_numpy(own) for at, own in self._counts.items()}
        noise = torch.tensor(self.noise, dtype=torch.float64)
        return {_NOISE: noise, _ASKED: torch.tensor(self.asked), **counts}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        if not self._settings.dp:
            return
        self.noise, self.asked = float(tensors[_NOISE]), int(tensors[_ASKED])
        self._counts = {
            int(name.removeprefix(_COUNTS)): value.numpy().astype(np.int64)
            for name, value in tensors.items()
            if name.startswith(_COUNTS)
        }

    @property
    def _most(self) -> int:
        """In how many mini-batches a sample may be."""
        own = self._settings
        return most_times(own.dp_epsilon, self.noise, own.dp_delta)

    def _over(self, round: int, cohort: Iterable[Member]) -> str:
        """Return what a round would cost if that is too much, empty if it is not."""
        if not self._settings.dp_epsilon:
            return ""
        for member in cohort:
            times = int(self._after(self._counts.get(member.partition), member, round).max())
            if times > self._most:
                epsilon = epsilon_of(self.noise, times, self._settings.dp_delta)
                return (
                    f"Round {round} would bring a sample of client {member.partition}, which "
                    f"holds {member.samples}, to epsilon = {epsilon:.4g}, more than dp_epsilon = "
                    f"{self._settings.dp_epsilon:g}"
                )
        return ""

    def _count(self, asked: Asked) -> None:
        for partition, samples in asked.clients.items():
            member, before = Member(partition, 0, samples), self._counts.get(partition)
            self._counts[partition] = self._after(before, member, asked.round)
        self.asked += 1

    def _after(self, counts: Counts | None, member: Member, round: int) -> Counts:
        """Return a client's counts after it was in a round."""
        # Of a client that says it holds more, each sample counts as if it were in all mini-batches.
        held = member.samples if member.samples <= MOST_SAMPLES else 1
        if counts is None or len(counts) != held:
            # It comes with other samples; what they share with those before nobody knows.
            counts = np.full(held, 0 if counts is None else counts.max(), np.int64)
        size, key = self._config.batch_size, self._config.client_key(member.partition)
        batches = self._settings.batches(member.samples, size)
        rows = rows_of_round(key, round, batches, held, size)
        return counts + np.bincount(rows, minlength=held)

    def _planned(self, here: list[Member]) -> int:
        """Return in how many mini-batches a sample will be if everyone who is here stays."""
        counts: dict[int, Counts] = {}
        for round in range(1, self._config.rounds + 1):
            for at in draw_cohort(self._config.seed, round, len(here), self._config.cohort):
                member = here[at]
                own = counts.get(member.partition)
                counts[member.partition] = self._after(own, member, round)
        return max(int(own.max()) for own in counts.values())


def _forget(asked: Asked) -> None:
    """Write down nothing: a run without a directory is not resumed."""
