"""DeComFL (arXiv 2405.15861): the whole model by zeroth order, seeds and scalars on the wire.

The baseline without a cut and without backprop.  Per round the clients catch up, walk H local
steps of zeroth-order SGD along directions that all of them share, P a step, send the H x P scalars
and go back to where they started.  The mean of the scalars over clients (or what else `aggregator`
makes of them) is one journal entry, which everyone applies.  Plain SGD is linear in the scalars, so
that is the mean of the walks.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError, CutError, JournalError
from sfl_flower.options import Choice, ClientMode, Minibatches, Range, Rate
from sfl_flower.server.aggregate import client_weight
from sfl_flower.server.cost import ClientCost, Parts
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.facts import Facts
from sfl_flower.server.journalled import JournalledStrategy
from sfl_flower.server.mirror import SYNC_POLICIES, Mirror
from sfl_flower.server.outcome import Outcome
from sfl_flower.server.private import PrivacySettings, check_apart, check_private
from sfl_flower.server.probing import (
    Noise,
    Probes,
    ProbingSettings,
    check_estimator,
    check_scalars,
    note_zeros,
)
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SCALARS
from sfl_flower.server.settings import ClientRateSettings
from sfl_flower.server.spending import Spending
from sfl_flower.server.verdict import tell
from sfl_flower.split import Whole, check_zeroth_order, load_dequantised
from sfl_flower.training.modes import eval_mode
from sfl_flower.wire.decomfl import WalkReply, WalkRequest
from sfl_flower.zo import (
    SHARED_STREAM,
    Entry,
    OptimizerSpec,
    drawn_signs,
    run_key,
    step_keys,
)
from sfl_flower.zo.entry import MAX_COEFFICIENTS

__all__ = ["DeComFL", "DeComFLSettings"]


@dataclass(frozen=True)
class DeComFLSettings(ProbingSettings, PrivacySettings, ClientRateSettings):
    """Settings of DeComFL, beside those of probes.

    Attributes
    ----------
    local_steps : int
        H, zeroth-order steps per client and round, a mini-batch each.
    client_lr : float
        Learning rate of the local steps and of the update that everyone applies.
    scalar_limit : float
        A reply with |v| / μ above this is not used.
    sync : {"auto", "replay", "download"}
        How clients that missed rounds catch up; "auto" takes whichever is fewer bytes.
    client_mode : {"as_built", "eval"}
        Mode of the model's modules on the clients: as the task built them, or eval.
    """

    local_steps: Minibatches = 1
    probes: Probes = 5
    client_lr: Rate = 0.005
    scalar_limit: Annotated[float, Range(0)] = 1e6
    sync: Annotated[str, Choice(SYNC_POLICIES)] = "auto"
    client_mode: ClientMode = "as_built"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_steps * self.probes > MAX_COEFFICIENTS:
            raise ConfigError(
                f"local_steps x probes is {self.local_steps * self.probes}; a journal entry holds "
                f"at most {MAX_COEFFICIENTS} scalars."
            )

    @property
    def client_passes(self) -> tuple[int, int]:
        """Forwards and backprops of a client for each sample; nothing is sent of the anchor."""
        rule = self.probing().rule
        return int(rule.anchored) + self.probes * rule.forwards, 0

    @property
    def server_pace(self) -> str:
        """When the server half steps."""
        return "round"

    def batches(self, samples: int, batch_size: int) -> int:
        """Return the mini-batches that a client with so many samples runs in a round."""
        return self.local_steps


class DeComFL(JournalledStrategy):
    """Server side of DeComFL; see the module and `SplitStrategy`."""

    name: ClassVar[str] = "decomfl"
    settings_type: ClassVar[type[Settings]] = DeComFLSettings
    facts: ClassVar[Facts] = Facts(
        "forwards alone",
        client="zeroth order",
        server="averages",
        journal=True,
        labels=False,
        whole=True,
        server_lr=False,
    )
    settings: DeComFLSettings

    @staticmethod
    def cost(parts: Parts) -> ClientCost:
        """Return what a mini-batch costs a client."""
        return ClientCost(
            up=parts.scalars,
            down=parts.journal,
            memory=parts.probing(),
            seconds=parts.probe_seconds(beside_anchor=False),
        )

    @classmethod
    def check_options(cls, config: RunConfig, settings: Settings) -> None:
        """Refuse also what `check_private` does."""
        assert isinstance(settings, DeComFLSettings)
        super().check_options(config, settings)
        check_private(config, settings, settings.local_steps)

    def prepare(self) -> None:
        """Check the model, and start the journal at its current weights.

        Raises
        ------
        CutError
            If something in either half breaks zeroth-order training.
        """
        whole = Whole(self.client_half, self.server.module)
        with eval_mode(whole) if self.settings.client_mode == "eval" else nullcontext():
            self._check(whole)
        self.spending = Spending(self.config, self.settings, self.facts)
        self._key = run_key("decomfl", self.config.seed)
        self.mirror = Mirror(
            whole,
            self._key,
            self.settings.direction,
            OptimizerSpec("sgd"),
            self.settings.sync,
        )

    def _check(self, whole: Whole) -> None:
        x, y = self.examples(2)
        try:
            check_zeroth_order(self.client_half, example=(x,), frozen_ok=True)
            with torch.no_grad():
                z = self.client_half(x)
            check_zeroth_order(self.server.module, example=(z,), frozen_ok=True)
        except CutError as error:
            raise CutError(
                f"{error} DeComFL trains both halves by forwards, so another cut does not help; "
                "client-mode=eval runs both in eval mode."
            ) from error
        probing, loss = self.settings.probing(), self.task.loss
        check_estimator(probing, whole, lambda: loss(whole(x), y))
        check_apart(self.settings, whole, whole, x, self.config.seed)

    def load_client(self, state: Mapping[str, Tensor]) -> None:
        """Put the whole model's weights in place before the first round."""
        load_dequantised(self.server.module, state)
        super().load_client(state)

    def noise(self) -> Noise:
        """Return d, that of the whole model, and the directions of a local step."""
        probes = self.settings.probes
        return Noise(self.mirror.vector.size, probes, f"{probes} probes, shared by the clients")

    def method_tensors(self) -> dict[str, Tensor]:
        """Return journal and parameters for a checkpoint."""
        return self.mirror.tensors() | self.spending.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put journal and parameters back."""
        self.mirror.load_tensors(tensors)
        self.spending.load_tensors(tensors)

    def train_round(self, round: int, cohort: list[Member], exchange: Exchange) -> Outcome:
        """Run one round of DeComFL: replay and walk on the clients, one entry from the mean."""
        self.spending.begin(round, cohort, self._roster, self.account, exchange.tally)
        lr = self.settings.client_rate(round, self.config.rounds)
        replies = self.ask_in_step(
            cohort,
            exchange,
            lambda member: self._request(round, member, lr),
            WalkReply.from_reader,
            self._check_scalars,
        )
        brought = {member: reply.scalars for member, reply in replies.items()}
        last = [row for entry in self.journal.entries[-1:] for row in entry.coefficients]
        may = self.spending.comparable
        kept = self.screening.keep(SCALARS, brought, exchange.tally, last, compared=may)
        replies = {member: replies[member] for member in kept}
        self.book_usage(reply.usage for reply in replies.values())
        extra = self._update(round, lr, replies, exchange)
        exchange.tally.replies = len(replies)
        samples = sum(reply.samples for reply in replies.values())
        # With a clip no client tells its loss: it is of samples that nothing bounds.
        losses = [] if self.settings.dp_clip else [reply.loss for reply in replies.values()]
        return self.spending.closed(Outcome(losses, samples, extra))

    def _request(self, round: int, member: Member, lr: float) -> WalkRequest:
        settings = self.settings
        return WalkRequest(
            round=round,
            steps=settings.local_steps,
            probing=self.spending.of(settings.probing()),
            batch_size=self.config.batch_size,
            setup=self.setup,
            sync=self.mirror.sync(member),
            lr=lr,
            meter=self.metering(round),
        )

    def _check_scalars(self, reply: WalkReply) -> None:
        check_scalars(reply.scalars, self.settings.probing(), self.settings.scalar_limit)

    def _update(
        self, round: int, lr: float, replies: Mapping[Member, WalkReply], exchange: Exchange
    ) -> dict[str, float]:
        """Fold the mean over clients and 1/(P μ) into coefficients, and journal them."""
        if not replies:
            return {}
        weights = np.array([client_weight(self.config.mean, r.samples) for r in replies.values()])
        probing = self.settings.probing()
        scalars = np.stack([reply.scalars for reply in replies.values()]).astype(np.float64)
        shown = self.spending.shown(scalars)
        note_zeros(exchange.tally, shown, probing)
        scale = weights / (weights.sum() * self.settings.probes * probing.unit)
        coefficients = self.aggregator.scalars(scalars, scale)[None]
        tell(exchange.tally, self.aggregator, [member.partition for member in replies])
        told = sorted(member.partition for member in replies)
        coefficients = self.spending.noised(coefficients, scale, probing, round, told)
        if self.settings.walk:
            steps, probes = range(self.settings.local_steps), self.settings.probes
            keys = [step_keys(round, step, SHARED_STREAM, probes) for step in steps]
            coefficients *= np.stack([drawn_signs(self._key, each) for each in keys])
        try:
            self.mirror.update(
                Entry(
                    round=round,
                    lr=lr,
                    streams=(SHARED_STREAM,),
                    steps=self.settings.local_steps,
                    probes=self.settings.probes,
                    coefficients=coefficients.astype(np.float32),
                )
            )
        except JournalError as error:
            exchange.tally.note(str(error))
        rms = {"scalar_rms": float(np.sqrt(np.mean(shown**2)))} if shown.size else {}
        return {"client_lr": lr, **rms}
