"""`attack`: every attack on every cut, with every defence, beside what a guess reaches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from sfl_flower.attacks.at_cut import ATTACKS, AtCut
from sfl_flower.attacks.defences import PLAIN, check_defence
from sfl_flower.attacks.findings import AttackReport
from sfl_flower.attacks.halves import Trained, attacked_at
from sfl_flower.attacks.measures import check_package
from sfl_flower.attacks.samples import Sides, sides_of
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.errors import ConfigError
from sfl_flower.options import check_choice
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import torch_threads
from sfl_flower.wire.encodings import FORMATS

__all__ = ["ATTACKS", "attack"]

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
    keep: Callable[[AttackReport], None] | None = None,
) -> AttackReport:
    """Attack the client half of a task's model.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    cuts : sequence of str
        Where, each once; the task's own cut by default.
    defences : sequence of str
        What clients do to smashed data, see `Defence`; each beside the plain client, and of a run
        beside the encoding that its clients sent them in.
    attacks : collection of str
        Of `ATTACKS`.
    settings : AttackSettings, optional
        How hard the attacker tries.
    run : Trained, optional
        A run whose weights are attacked; the task's first weights otherwise.
    watch : callable, optional
        Called with what is done next.
    keep : callable, optional
        Called with the report so far after each cut.

    Returns
    -------
    AttackReport
        What was found, with reconstructions. An attack that a cut or a defence does not allow is
        left out with a note, and costs no other.

    Raises
    ------
    ConfigError
        If an attack, a defence or a setting is not legal, or the task has no such samples.
    CutError
        If the model cannot be cut there.
    DataError
        If a model's numbers are not finite.
    """
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
    if not sides.tokens and set(done) - set(OF_IDS):
        check_package()
    used = () if run is None or run.smashed == next(iter(FORMATS)) else (run.smashed,)
    chosen = tuple(dict.fromkeys((PLAIN, *used, *defences)))
    wanted = dict.fromkeys(cuts or (task.cut,))
    subjects = [attacked_at(task, settings.seed, at, run) for at in wanted]
    left_out = [name for name in attacks if name not in done]
    report = AttackReport(
        task.name,
        "its first weights" if run is None else f"the weights of {run.path}",
        settings,
        next(iter(task.metrics), "loss"),
        sides.shown(sides.x),
        sides.guess,
        sides.class_guess,
        [],
        [*_notes(sides, settings, left_out), *_of_run(run)],
    )
    with torch_threads(settings.threads):
        for subject in subjects:
            one = AtCut(task, subject, sides, settings)
            found = one.report(chosen, done, watch or (lambda _: None))
            report = replace(report, cuts=[*report.cuts, found])
            if keep is not None:
                keep(report)
    return report


def _notes(sides: Sides, settings: AttackSettings, left_out: Sequence[str]) -> Iterator[str]:
    if left_out:
        yield (
            "Inputs are ids, of which no decoder makes pictures: left out are "
            f"{', '.join(left_out)}."
        )
    yield (
        f"Victims are {settings.victims} test samples, to whose inputs and labels nothing is "
        "fitted (clusters are of their smashed data, as they arrive). Auxiliary are "
        f"{settings.auxiliary} training samples, which no client of a hijacked run holds."
    )
    if not sides.tokens:
        yield (
            "A guess needs no smashed data: the mean auxiliary input, and the mean of those with "
            "the victim's label, for labels are sent. A share is of the better one's error: 1 "
            "means that nothing was learned. Decoders are told labels."
        )
    yield "The guess of a label is the commonest among auxiliary samples."
    yield "An attack that fails shows what this attacker cannot do, not that nobody can."


def _of_run(run: Trained | None) -> Iterator[str]:
    if run is None:
        return
    yield "Clients of the run itself may have held auxiliary samples."
    method = run.config.get("method")
    if not run.sends:
        yield (
            f"Clients of '{method}' hold the whole model and send no smashed data: figures say "
            "what its weights would tell in a method with a cut there."
        )
    elif run.smashed != next(iter(FORMATS)):
        yield (
            f"Clients of the run sent smashed data as '{run.smashed}': its rows say what crossed, "
            "those of other defences what would have."
        )
    yield "What a postprocessor of the run did to smashed data is not recorded and not done here."
