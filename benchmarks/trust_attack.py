"""What a server reconstructs of inputs at three cuts of two models, with and without defences.

Each model is trained for some rounds of HO-SFL first, so that a defence has a price in accuracy.
The figures are errors of a decoder that was trained on auxiliary samples, as shares of the error of
the better guess, the mean auxiliary input or that of the label: 1 is a guess, 0 the input itself.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from sfl_flower import simulate
from sfl_flower.attacks.attack import attack
from sfl_flower.attacks.findings import AttackReport
from sfl_flower.attacks.halves import Trained
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.options import check_choice
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["SUBJECTS", "add_arguments", "figures"]


@dataclass(frozen=True)
class Subject:
    """A model, where it is cut, and how it is trained first."""

    task: str
    cuts: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)


SUBJECTS: Mapping[str, Subject] = {
    "digits": Subject("digits", ("relu1", "pool2", "tanh1"), {"model": "conv"}, {"clients": 4}),
    "fashion_mnist": Subject(
        "fashion_mnist", ("relu1", "relu2", "relu3"), {"train_size": 20_000, "test_size": 2000}
    ),
    "resnet18": Subject(
        "cifar10", ("maxpool", "layer1", "layer2"), {"train_size": 8000, "test_size": 1000},
        {"server_lr": 0.02, "client_mode": "eval"},
    ),
}  # fmt: skip
"""Name -> what it is; the images of the last two are in ``SFL_DATA_DIR``."""


def add_arguments(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument(
        "--trust-attack-models", default="fashion_mnist,resnet18",
        help=f"with commas between, of: {', '.join(SUBJECTS)}",
    )  # fmt: skip
    parser.add_argument("--trust-attack-rounds", type=int, default=30, help="of HO-SFL before")
    parser.add_argument("--trust-attack-auxiliary", type=int, default=600, help="samples")
    parser.add_argument(
        "--trust-attack-epochs", type=int, default=AttackSettings.epochs, help="of the decoders"
    )
    parser.add_argument(
        "--trust-attack-defences", nargs="*", metavar="CHAIN", help="beside none",
        default=["noise:1", "int4", "topk:0.1+int8"],
    )  # fmt: skip


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the error at each cut and defence of each model."""
    names = args.trust_attack_models.split(",")
    for name in names:
        check_choice("--trust-attack-models", name, SUBJECTS)
    settings = AttackSettings(
        auxiliary=args.trust_attack_auxiliary,
        observed=10,
        epochs=args.trust_attack_epochs,
    )
    for name in dict.fromkeys(names):
        yield from _shares(name, _report(SUBJECTS[name], args, settings))


def _report(subject: Subject, args: argparse.Namespace, settings: AttackSettings) -> AttackReport:
    task: SplitTask = load_task(subject.task, **subject.options)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        own = {"clients": 8, "minibatches": 1, **subject.run}
        rounds = args.trust_attack_rounds
        options: dict[str, Any] = {"rounds": rounds, "eval_every": rounds, **own}
        simulate(task, "ho_sfl", backend="inline", out=out, **options)
        return attack(
            task, subject.cuts, defences=args.trust_attack_defences, attacks=["decoder"],
            settings=settings, run=Trained.read(out),
        )  # fmt: skip


def _shares(name: str, report: AttackReport) -> Iterator[Figure]:
    for cut in report.cuts:
        for found in cut.findings:
            share, price = found.of_guess, cut.accuracy[found.defence]
            reached, guess, of_class = found.reached, found.guess, found.class_guess
            words = re.sub(r"\W+", "_", f"{name}_{cut.at}_{found.defence}").lower()
            yield Figure(
                f"attack_share_{words}",
                float("nan") if share is None else share,
                "share",
                None,
                f"one of {len(report.cuts)} cuts under {len(cut.defences)} defences, none among "
                f"them; MSE {reached['mse']:.4f}, the mean {guess['mse']:.4f}, the class's "
                f"{of_class['mse']:.4f}; SSIM {reached['ssim']:.3f}, the mean {guess['ssim']:.3f}, "
                f"the class's {of_class['ssim']:.3f}; test {report.metric} {price:.4f}, undefended "
                f"{cut.accuracy['none']:.4f}; {report.settings.auxiliary} auxiliary samples, "
                f"{report.settings.epochs} epochs, {cut.defences[found.defence]}",
            )
