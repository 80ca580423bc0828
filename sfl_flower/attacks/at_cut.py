"""All attacks on one cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from sfl_flower.attacks.defences import Defence
from sfl_flower.attacks.findings import CutReport, Finding
from sfl_flower.attacks.halves import Attacked, finite, smashed
from sfl_flower.attacks.hijacking import HIJACKED, hijacked_half
from sfl_flower.attacks.inversion import fit_decoder
from sfl_flower.attacks.labels import cut_gradients, known_rows, label_scores
from sfl_flower.attacks.measures import chance, compared, ranked
from sfl_flower.attacks.parts import in_parts
from sfl_flower.attacks.pilot import Pilot
from sfl_flower.attacks.samples import Sides, problem_of
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.attacks.simulator import fit_simulator
from sfl_flower.data import generator
from sfl_flower.errors import SflError
from sfl_flower.task import SplitTask

__all__ = ["ATTACKS", "AtCut"]

ATTACKS = {
    "decoder": "a decoder trained on auxiliary samples through the client half",
    "simulator": "a decoder of a simulated half, without the client's weights",
    "hijack": "a server that leads SplitFed by λ and HO-SFL by scalars to a half it can undo",
    "labels": "labels from cut gradients, and from how smashed data resemble one another",
}
"""Name -> what it is."""


@dataclass(eq=False)
class AtCut:
    """Attacks on one cut.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    subject : Attacked
        The halves.
    sides : Sides
        Who holds which samples.
    settings : AttackSettings
        How hard the attacker tries.
    """

    task: SplitTask
    subject: Attacked
    sides: Sides
    settings: AttackSettings

    @cached_property
    def auxiliary_z(self) -> Tensor:
        """The auxiliary samples' smashed data, [N, ...]."""
        return smashed(self.subject.client, self.sides.auxiliary_x)

    @cached_property
    def z(self) -> Tensor:
        """The victims' smashed data, [N, ...]."""
        return smashed(self.subject.client, self.sides.x)

    @cached_property
    def guesses(self) -> tuple[dict[str, float], dict[str, float]]:
        """What the mean input reaches, and the mean of the victim's class."""
        truth = self.sides.shown(self.sides.x)
        return compared(self.sides.guess, truth), compared(self.sides.class_guess, truth)

    def report(
        self, chosen: Sequence[str], attacks: Sequence[str], watch: Callable[[str], None]
    ) -> CutReport:
        """Return what attacks reach under each defence; one that is refused leaves a note.

        Parameters
        ----------
        chosen : sequence of str
            The defences.
        attacks : sequence of str
            Of `ATTACKS`.
        watch : callable
            Called with what is done next.

        Raises
        ------
        DataError
            If smashed data, or what the server half makes of them, are not finite.
        """
        finite(in_parts(self.subject.server, self.z), "What the server half makes of smashed data")
        findings: list[Finding] = []
        accuracy, said = {}, {}
        refused: dict[str, list[str]] = {}
        for text in chosen:
            defence = Defence.fitted(text, self.auxiliary_z)
            said[text] = defence.said
            accuracy[text] = self._accuracy(defence)
            for name in attacks:
                watch(f"{self.subject.at}, {text}: {name}")
                for found in self._tried(name, getattr(self, f"_{name}")(defence)):
                    if isinstance(found, Finding):
                        findings.append(found)
                    else:
                        refused.setdefault(found, []).append(text)
        notes = [f"{says} (with {', '.join(texts)})" for says, texts in refused.items()]
        if {"simulator", "hijack"} & set(attacks) and self.subject.given:
            notes.append(self._given())
        shape = tuple(self.z.shape[1:])
        return CutReport(self.subject.at, shape, accuracy, said, findings, notes)

    def _given(self) -> str:
        return (
            f"{self.subject.given:.0%} of what is drawn of other models' weights is the same for "
            "every seed, as of a model that is read from a checkpoint: the simulated half and the "
            "pilot begin with the very weights that clients began with, so their rows are those of "
            "a server that knows them."
        )

    def _tried(self, name: str, findings: Iterator[Finding | str]) -> Iterator[Finding | str]:
        try:
            yield from findings
        except SflError as error:
            yield f"{name} is left out: {error}"

    def _accuracy(self, defence: Defence) -> float:
        drawn = generator("accuracy", self.settings.seed, defence.text)

        def forward(x: Tensor) -> Tensor:
            found: Tensor = self.subject.server(defence(self.subject.client(x), drawn))
            return found

        with torch.no_grad():
            measures = self.task.evaluate(forward)
        return measures[next(iter(self.task.metrics), "loss")]

    def _sent(self, defence: Defence, *words: str) -> Callable[[Tensor], Tensor]:
        """Return what gives smashed data as the server gets them, with draws of these words."""
        drawn = generator(*words, self.settings.seed, defence.text)
        return partial(defence.seen, generator=drawn, sightings=self.settings.sightings)

    def _arrived(self, defence: Defence) -> Tensor:
        """Return the victims' smashed data as the server gets them."""
        return self._sent(defence, "defence")(self.z)

    def _found(
        self, name: str, defence: Defence, decoder: Callable[[Tensor, Tensor], Tensor], z: Tensor,
        **facts: float,
    ) -> Finding:  # fmt: skip
        """Return a finding of what a decoder makes of the victims' smashed data."""
        made = in_parts(decoder, z, self.sides.y)
        shown = finite(made, "Reconstructions").clamp(0, 1)
        reached = compared(shown, self.sides.shown(self.sides.x))
        return Finding(name, defence.text, "inputs", reached, *self.guesses, facts, shown)

    def _decoder(self, defence: Defence) -> Iterator[Finding | str]:
        often = self.settings.sightings
        once = None if defence.random else defence(self.auxiliary_z, generator("once"))
        decoder = fit_decoder(
            lambda drawn: defence.seen(self.auxiliary_z, drawn, often) if once is None else once,
            self.sides.auxiliary_y,
            self.sides.shown(self.sides.auxiliary_x),
            self.task.classes,
            self.settings.epochs,
            self.settings.seed,
            self.subject.at,
        )
        yield self._found("decoder", defence, decoder, self._arrived(defence))

    def _simulator(self, defence: Defence) -> Iterator[Finding | str]:
        sides = self.sides
        observed = smashed(self.subject.client, sides.observed_x)
        decoder = fit_simulator(
            self.subject.fresh("simulator"),
            lambda z, y: self.task.loss(self.subject.server(z), y),
            (sides.auxiliary_x, sides.auxiliary_y, sides.shown(sides.auxiliary_x)),
            (self._sent(defence, "observed")(observed), sides.observed_y),
            self.task.classes,
            self._sent(defence, "simulated"),
            self.settings.epochs,
            self.settings.seed,
            self.subject.at,
        )
        yield self._found("simulator", defence, decoder, self._arrived(defence))

    def _pilot(self, defence: Defence) -> Pilot:
        sides, own = self.sides, self.settings
        half = self.subject.fresh("pilot")
        if own.pilot == "client":
            half = copy.deepcopy(self.subject.client).requires_grad_(True)
        return Pilot(
            half,
            sides.auxiliary_x,
            sides.shown(sides.auxiliary_x),
            sides.auxiliary_y,
            self.task.classes,
            own.epochs,
            own.strength,
            self._sent(defence, "piloted"),
            own.seed,
            self.subject.at,
        )

    def _hijack(self, defence: Defence) -> Iterator[Finding | str]:
        pilot, z = self._pilot(defence), self._arrived(defence)
        yield self._found("hijack, not followed", defence, pilot.decoder, z, apart=pilot.apart(z))
        for method in HIJACKED:
            yield from self._tried(_led_by(method), self._led(method, pilot, defence))

    def _led(self, method: str, pilot: Pilot, defence: Defence) -> Iterator[Finding | str]:
        subject, words = self.subject, (self.settings.seed, defence.text, method)
        problem = problem_of(self.task, self.sides, subject.whole, subject.at)
        sent = defence.postprocess(generator("hijacked", *words))
        half = hijacked_half(problem, method, copy.deepcopy(pilot), self.settings, sent)
        z = self._sent(defence, "led", method)(smashed(half, self.sides.x))
        yield self._found(_led_by(method), defence, pilot.decoder, z, apart=pilot.apart(z))

    def _labels(self, defence: Defence) -> Iterator[Finding | str]:
        sides, seed = self.sides, self.settings.seed
        rows = known_rows(sides.auxiliary_y, self.settings.known)
        labels = sides.auxiliary_y[rows]
        z, told = self._arrived(defence), self._sent(defence, "known")(self.auxiliary_z[rows])
        server = self.subject.server
        gradients = (
            cut_gradients(self.task, server, z, sides.y),
            cut_gradients(self.task, server, told, labels),
        )
        output = in_parts(server, z)
        scores = label_scores(gradients, (z, told), output, labels, self.task.classes, seed)
        guess = chance(sides.y, sides.auxiliary_y)
        for name, values in scores.items():
            finite(values, f"Scores of '{name}'")
            yield Finding(name, defence.text, "labels", ranked(values, sides.y), guess)


def _led_by(method: str) -> str:
    return f"hijack by {HIJACKED[method]} ({method})"
