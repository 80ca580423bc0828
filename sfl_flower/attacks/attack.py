"""`attack`: every attack on every cut, with every defence, beside what a guess reaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sfl_flower.attacks.defences import PLAIN, Defence, check_defence
from sfl_flower.attacks.findings import AttackReport, CutReport, Finding
from sfl_flower.attacks.halves import Attacked, Trained, attacked_at, smashed
from sfl_flower.attacks.hijacking import HIJACKED, hijacked_half
from sfl_flower.attacks.inversion import fit_decoder
from sfl_flower.attacks.labels import cut_gradients, known_rows, label_scores
from sfl_flower.attacks.measures import chance, check_package, compared, ranked
from sfl_flower.attacks.pilot import Pilot
from sfl_flower.attacks.samples import Sides, problem_of, sides_of
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.attacks.simulator import fit_simulator
from sfl_flower.data import generator
from sfl_flower.errors import ConfigError
from sfl_flower.options import check_choice
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import torch_threads

__all__ = ["ATTACKS", "attack"]

ATTACKS = {
    "decoder": "a decoder trained on auxiliary samples through the client half",
    "simulator": "a decoder of a simulated half, without the client's weights",
    "hijack": "a server that leads SplitFed by λ and HO-SFL by scalars to a half it can undo",
    "labels": "labels from cut gradients, and from how smashed data resemble one another",
}
"""Name -> what it is."""
OF_IDS = ("labels",)
"""Those that do without numbers as inputs."""


def attack(
    task: SplitTask,
    cuts: Sequence[str] = (),
    *,
    defences: Sequence[str] = (),
    attacks: Collection[str] = tuple(ATTACKS),
    settings: AttackSettings | None = None,
    run: Trained | None = None,
    watch: Callable[[str], None] | None = None,
) -> AttackReport:
    """Attack the client half of a task's model.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    cuts : sequence of str
        Where; the task's own cut by default.
    defences : sequence of str
        What clients do to smashed data, see `Defence`; each beside the plain client.
    attacks : collection of str
        Of `ATTACKS`.
    settings : AttackSettings, optional
        How hard the attacker tries.
    run : Trained, optional
        A run whose weights are attacked; the task's first weights otherwise.
    watch : callable, optional
        Called with what is done next.

    Returns
    -------
    AttackReport
        What was found, with reconstructions.

    Raises
    ------
    ConfigError
        If an attack, a defence or a setting is not legal, or the task has no such samples.
    CutError
        If the model cannot be cut there.
    """
    check_package()
    for name in attacks:
        check_choice("attacks", name, ATTACKS)
    if not attacks:
        raise ConfigError(f"No attack is named; attacks must be some of {', '.join(ATTACKS)}.")
    for text in defences:
        check_defence(text)
    settings = settings or AttackSettings()
    sides = sides_of(task, settings)
    done = [name for name in ATTACKS if name in attacks and (name in OF_IDS or not sides.tokens)]
    if not done:
        raise ConfigError(
            f"Inputs of task '{task.name}' are ids, of which no decoder makes pictures; attacks "
            f"must be {', '.join(OF_IDS)}."
        )
    chosen = tuple(dict.fromkeys((PLAIN, *defences)))
    subjects = [attacked_at(task, settings.seed, at, run) for at in cuts or (task.cut,)]
    reports = []
    with torch_threads(settings.threads):
        for subject in subjects:
            one = _AtCut(task, subject, sides, settings)
            reports.append(one.report(chosen, done, watch or (lambda _: None)))
    return AttackReport(
        task.name,
        "its first weights" if run is None else f"the weights of {run.path}",
        settings,
        next(iter(task.metrics), "loss"),
        sides.shown(sides.x),
        sides.guess,
        reports,
        _notes(settings, [name for name in attacks if name not in done], run),
    )


def _notes(settings: AttackSettings, left_out: Sequence[str], run: Trained | None) -> list[str]:
    ids = f"Inputs are ids, of which no decoder makes pictures: left out are {', '.join(left_out)}."
    return [
        *([ids] if left_out else []),
        (
            f"Victims are {settings.victims} test samples; no attacker is trained on them. "
            f"Auxiliary are {settings.auxiliary} training samples, which no client of a hijacked "
            + ("run holds." if run is None else "run holds; clients of the run itself may have.")
        ),
        (
            "A guess is what needs no smashed data: the mean auxiliary input, the commonest "
            "auxiliary label. A share of 1 means that nothing was learned."
        ),
        "An attack that fails shows what this attacker cannot do, not that nobody can.",
    ]


@dataclass(eq=False)
class _AtCut:
    """Attacks on one cut."""

    task: SplitTask
    subject: Attacked
    sides: Sides
    settings: AttackSettings

    @cached_property
    def auxiliary_z(self) -> Tensor:
        return smashed(self.subject.client, self.sides.auxiliary_x)

    @cached_property
    def z(self) -> Tensor:
        return smashed(self.subject.client, self.sides.x)

    @cached_property
    def guess(self) -> dict[str, float]:
        return compared(self.sides.guess, self.sides.shown(self.sides.x))

    def arrived(self, defence: Defence) -> Tensor:
        """Return the victims' smashed data as the server gets them."""
        return defence(self.z, generator("defence", self.settings.seed, defence.text))

    def report(
        self, chosen: Sequence[str], attacks: Sequence[str], watch: Callable[[str], None]
    ) -> CutReport:
        findings: list[Finding] = []
        accuracy, said = {}, {}
        for text in chosen:
            defence = Defence.fitted(text, self.auxiliary_z)
            said[text] = defence.said
            accuracy[text] = self._accuracy(defence)
            for name in attacks:
                watch(f"{self.subject.at}, {text}: {name}")
                findings += getattr(self, f"_{name}")(defence)
        shape = tuple(self.z.shape[1:])
        return CutReport(self.subject.at, shape, accuracy, said, findings, [])

    def _accuracy(self, defence: Defence) -> float:
        drawn = generator("accuracy", self.settings.seed, defence.text)

        def forward(x: Tensor) -> Tensor:
            found: Tensor = self.subject.server(defence(self.subject.client(x), drawn))
            return found

        with torch.no_grad():
            measures = self.task.evaluate(forward)
        return measures[next(iter(self.task.metrics), "loss")]

    def found(self, name: str, defence: Defence, shown: Tensor, **facts: float) -> Finding:
        """Return a finding of reconstructions in 0 .. 1."""
        shown = shown.clamp(0, 1)
        reached = compared(shown, self.sides.shown(self.sides.x))
        return Finding(name, defence.text, "inputs", reached, self.guess, facts, shown)

    def _decoder(self, defence: Defence) -> Iterator[Finding]:
        once = None if defence.random else defence(self.auxiliary_z, generator("once"))
        decoder = fit_decoder(
            lambda drawn: defence(self.auxiliary_z, drawn) if once is None else once,
            self.sides.shown(self.sides.auxiliary_x),
            self.settings.epochs,
            self.settings.seed,
            self.subject.at,
        )
        with torch.no_grad():
            yield self.found("decoder", defence, decoder(self.arrived(defence)))

    def _simulator(self, defence: Defence) -> Iterator[Finding]:
        sides, seed = self.sides, self.settings.seed
        observed = smashed(self.subject.client, sides.observed_x)
        decoder = fit_simulator(
            self.subject.fresh("simulator"),
            lambda z, y: self.task.loss(self.subject.server(z), y),
            (sides.auxiliary_x, sides.auxiliary_y, sides.shown(sides.auxiliary_x)),
            defence(observed, generator("observed", seed, defence.text)),
            self.settings.epochs,
            seed,
            self.subject.at,
        )
        with torch.no_grad():
            yield self.found("simulator", defence, decoder(self.arrived(defence)))

    @cached_property
    def pilot(self) -> Pilot:
        sides, own = self.sides, self.settings
        half = self.subject.fresh("pilot")
        if own.pilot == "client":
            half = copy.deepcopy(self.subject.client).requires_grad_(True)
        told = (sides.auxiliary_x, sides.shown(sides.auxiliary_x), sides.auxiliary_y)
        how = (self.task.classes, own.epochs, own.strength)
        return Pilot(half, *told, *how, own.seed, self.subject.at)

    def _hijack(self, defence: Defence) -> Iterator[Finding]:
        pilot, z = self.pilot, self.arrived(defence)
        with torch.no_grad():
            shown = pilot.decoder(z)
        yield self.found("hijack, not followed", defence, shown, apart=pilot.apart(z))
        subject = self.subject
        problem = problem_of(self.task, self.sides, subject.whole, subject.at)
        for method, way in HIJACKED.items():
            drawn = generator("hijacked", self.settings.seed, defence.text, method)
            sent = defence.postprocess(drawn)
            half = hijacked_half(problem, method, copy.deepcopy(pilot), self.settings, sent)
            z = defence(smashed(half, self.sides.x), drawn)
            shown, apart = pilot.decoder(z).detach(), pilot.apart(z)
            yield self.found(f"hijack by {way} ({method})", defence, shown, apart=apart)

    def _labels(self, defence: Defence) -> Iterator[Finding]:
        sides, seed = self.sides, self.settings.seed
        rows = known_rows(sides.auxiliary_y, self.settings.known)
        labels = sides.auxiliary_y[rows]
        told = defence(self.auxiliary_z[rows], generator("known", seed, defence.text))
        z = self.arrived(defence)
        server = self.subject.server
        gradients = (
            cut_gradients(self.task, server, z, sides.y),
            cut_gradients(self.task, server, told, labels),
        )
        scores = label_scores(gradients, (z, told), labels, self.task.classes, seed)
        guess = chance(sides.y, sides.auxiliary_y)
        for name, values in scores.items():
            yield Finding(name, defence.text, "labels", ranked(values, sides.y), guess)
