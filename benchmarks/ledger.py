"""Published traffic, from dry runs of the presets through the real messages and ledger.

Rounds of a run are alike, so a run of R rounds is measured in one or a few of them and multiplied;
FSL-SAGE's two kinds of round are measured apart.  Labels and control are not charged, as in the
papers.  A figure is equal when it differs from the published one by less than one unit of the last
digit printed there: some were rounded, some were cut off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

from benchmarks.dry import RoundBytes, dry_rounds
from benchmarks.figure import Figure
from benchmarks.trial import options_for
from sfl_flower.errors import TrainingError
from sfl_flower.presets import load_preset

__all__ = ["Published", "add_arguments", "figures", "published", "run"]

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
CIFAR_IMAGES = 50_000
CUT = ("smashed", "gradients")
FEWER_IMAGES = 2_500
"""Images of the dry runs at HERON's cut, whose smashed data of a whole epoch are 12 GiB."""


@dataclass(frozen=True)
class Published:
    """A figure of a paper and how it is got here.

    Attributes
    ----------
    name : str
        Snake case, without the prefix ``ledger_``.
    paper : str
        The figure as printed, or as its authors' code counts it.
    unit : str
        A key of `UNITS`.
    ours : callable
        Gives the bytes.
    setting : str
        What was run.
    """

    name: str
    paper: str
    unit: str
    ours: Callable[[], int]
    setting: str

    def figure(self) -> Figure:
        """Run what is to be run; the value is in the published unit."""
        count = self.ours()
        value = count / UNITS[self.unit]
        verdict = "equal" if self.equal(value) else "NOT equal"
        return Figure(
            f"ledger_{self.name}",
            value,
            self.unit,
            None,
            f"ours {count} bytes, published {self.paper} {self.unit}: {verdict}; {self.setting}",
        )

    @property
    def digits(self) -> int:
        """Decimals of the published figure."""
        return len(self.paper.partition(".")[2])

    def equal(self, value: float) -> bool:
        """Tell whether a value is the published one to its last digit."""
        return abs(value - float(self.paper)) < 10.0**-self.digits


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--ledger-only", default="", help="figures whose name holds this text")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield a figure for each published one, and the share that is equal."""
    chosen = [row for row in published() if args.ledger_only in row.name]
    yield from figures(chosen)


def figures(rows: list[Published]) -> Iterator[Figure]:
    """Yield each row's figure and last the share of those that are equal."""
    different = []
    for row in rows:
        figure = row.figure()
        if not row.equal(figure.value):
            different.append(row.name)
        yield figure
    yield Figure(
        "ledger_equal_share",
        1.0 - len(different) / len(rows) if rows else float("nan"),
        "share",
        1.0,
        f"{len(rows) - len(different)} of {len(rows)} figures equal the published ones to the last "
        f"digit printed; not equal: {', '.join(different) or 'none'}",
    )


# Runs


@cache
def _rounds(preset: str, rounds: int = 1) -> tuple[RoundBytes, ...]:
    return tuple(
        dry_rounds(load_preset(f"{preset}_resnet18_cifar10").options, rounds, CIFAR_IMAGES)
    )


def _same(found: tuple[RoundBytes, ...], names: tuple[str, ...]) -> RoundBytes:
    """Return one of several rounds that are alike in these categories."""
    if len({(part.charged(names), part.samples) for part in found}) > 1:
        raise TrainingError(f"Rounds that should be alike differ in {names}: {found}.")
    return found[-1]


def _per_round(preset: str) -> int:
    """Return the bytes of a round of ten clients; the second round is like the first."""
    return _rounds(preset)[0].charged()


def _sage(aligned: int, plain: int, divisor: int = 1) -> int:
    """Return the bytes of so many rounds of FSL-SAGE; round 1 aligns, round 2 does not."""
    first, second = (part.charged() for part in _rounds("fsl_sage", 2))
    return (aligned * first + plain * second) // divisor


@cache
def _ho_sfl(everyone: bool = False) -> tuple[RoundBytes, ...]:
    options = load_preset("ho_sfl_resnet18_cifar10").options
    if everyone:
        options = {**options, "clients": options["sampled"]}
    return tuple(dry_rounds(options, 3, CIFAR_IMAGES))


HO_ROUNDS = 375


def _ho_cut(way: str) -> int:
    (name,) = {"up": ("smashed",), "down": ("gradients",)}[way]
    found = _same(_ho_sfl(), (name,))
    return HO_ROUNDS * (found.up[name] + found.down[name])


def _ho_scalars_up() -> int:
    _same(_ho_sfl(), ("smashed",))
    return HO_ROUNDS * _ho_sfl()[-1].up["scalars"]


def _ho_scalars_down() -> int:
    # The first round has nothing to bring, and no client of the others has missed one.
    later = _same(_ho_sfl(everyone=True)[1:], ("scalars", "keys"))
    return HO_ROUNDS * (later.down["scalars"] + later.down["keys"])


@cache
def _ho_splitfed() -> RoundBytes:
    options = options_for(
        "splitfed_v1",
        load_preset("ho_sfl_resnet18_cifar10").options,
        mean="samples",
        local_steps=0,
        client_optimizer="adamw",
        client_lr=1e-3,
        client_weight_decay=1e-4,
    )
    return dry_rounds(options, 1, CIFAR_IMAGES)[0]


HO_EPOCHS_ROUNDS = 24
"""Rounds of 10 clients with 500 samples each in which 120 000 samples are seen."""


def _ho_splitfed_weights(way: str) -> int:
    found = _ho_splitfed()
    return HO_EPOCHS_ROUNDS * (found.up if way == "up" else found.down)["weights"]


def _ho_splitfed_total() -> int:
    return HO_EPOCHS_ROUNDS * _ho_splitfed().charged()


@cache
def _heron(method: str) -> RoundBytes:
    options = options_for(method, load_preset("heron_resnet18_cifar10").options)
    return dry_rounds(options, 1, FEWER_IMAGES)[0]


def _epochs(method: str, epochs: int, weights: bool) -> int:
    """Return the bytes of so many epochs at HERON's cut, with or without the client half's."""
    found = _heron(method)
    smashed = found.charged(CUT) * CIFAR_IMAGES // found.samples
    return epochs * (smashed + (found.charged(("weights",)) if weights else 0))


def _heron_upload() -> int:
    found = _heron("heron")
    return found.up["smashed"] * 256 // found.samples


def _port(method: str, preset: str) -> int:
    """Return the bytes of two rounds of 2 clients with 30 000 images each."""
    options = {**load_preset(f"{preset}_resnet18_cifar10").options, "clients": 2}
    return 2 * dry_rounds({**options, "method": method}, 1, 60_000)[0].charged()


# Figures

SAGE = "ResNet-18, ImageNet stem, cut after layer2, CIFAR-10 sizes, 10 clients x 5000, batch 256"
TO_081 = "rounds to accuracy 0.81 in the paper's own runs, the bytes of a round are ours"
HO = "ResNet-18 to layer2, 10 of 100 clients x 500, batch 32, P = 5, 120 000 samples"
HERON = "ResNet-18, CIFAR stem, cut after layer1.0, 5 clients, batch 256, 50 000 samples an epoch"
SCALED = f"measured on {FEWER_IMAGES} images and multiplied, as bytes per sample and per round"


def published() -> list[Published]:
    """Return every published figure that is held against the ledger."""
    return [*_fsl_sage_figures(), *_ho_sfl_figures(), *_heron_figures(), *_port_figures()]


def _fsl_sage_figures() -> list[Published]:
    per_round = {
        "cse_fsl": "292.85",
        "splitfed_v1": "833.5",
        "splitfed_v2": "833.5",
        "fedavg": "853.8",
    }
    to_081 = {
        "cse_fsl": (91, "26.02"),
        "splitfed_v1": (74, "60.23"),
        "fedavg": (84, "70.04"),
        "splitfed_v2": (134, "109.07"),
    }
    return [
        Published(
            "fsl_sage_round",
            "132.26",
            "MiB",
            partial(_sage, 0, 1),
            f"{SAGE}, k = 5: round 2, without alignment",
        ),
        Published(
            "fsl_sage_aligned_round",
            "212.56",
            "MiB",
            partial(_sage, 1, 0),
            f"{SAGE}, k = 5: round 1, with alignment",
        ),
        Published(
            "fsl_sage_mean_round",
            "140.29",
            "MiB",
            partial(_sage, 1, 9, 10),
            f"{SAGE}, k = 5: mean over l = 10 rounds, one with alignment",
        ),
        *(
            Published(
                f"{name}_round", value, "MiB", partial(_per_round, f"{name}"), f"{SAGE}: round 1"
            )
            for name, value in per_round.items()
        ),
        Published(
            "fsl_sage_89_rounds",
            "12.20",
            "GiB",
            partial(_sage, 9, 80),
            f"{SAGE}: 89 rounds, 9 of them with alignment; {TO_081}",
        ),
        *(
            Published(
                f"{name}_{rounds}_rounds",
                value,
                "GiB",
                partial(_times, rounds, name),
                f"{SAGE}: {rounds} rounds; {TO_081}",
            )
            for name, (rounds, value) in to_081.items()
        ),
    ]


def _times(rounds: int, preset: str) -> int:
    return rounds * _per_round(preset)


def _ho_sfl_figures() -> list[Published]:
    three = f"{HO}: {HO_ROUNDS} x the bytes of a round, three rounds alike"
    epochs = (
        f"{HO}, SplitFed V1, one local epoch: {HO_EPOCHS_ROUNDS} x the bytes of a round; frozen "
        "BatchNorm does not travel, so weights are the 681 152 trained ones"
    )
    return [
        Published("ho_sfl_smashed_up", "937.5", "MiB", partial(_ho_cut, "up"), three),
        Published("ho_sfl_gradients_down", "937.5", "MiB", partial(_ho_cut, "down"), three),
        Published("ho_sfl_scalars_up", "75000", "B", _ho_scalars_up, three),
        Published(
            "ho_sfl_scalars_down",
            "75000",
            "B",
            _ho_scalars_down,
            f"{HO}, without catching up: 10 of 10 clients, {HO_ROUNDS} x the bytes of a round; the "
            "paper sends as many bytes of seeds, which follow from the round here",
        ),
        Published("ho_sfl_total", "1.831", "GiB", _ho_total, f"{three}; client half not charged"),
        Published(
            "splitfed_v1_weights_up", "623.6", "MiB", partial(_ho_splitfed_weights, "up"), epochs
        ),
        Published(
            "splitfed_v1_weights_down",
            "623.6",
            "MiB",
            partial(_ho_splitfed_weights, "down"),
            epochs,
        ),
        Published("splitfed_v1_total", "3.049", "GiB", _ho_splitfed_total, epochs),
    ]


def _ho_total() -> int:
    return _ho_cut("up") + _ho_cut("down") + _ho_scalars_up() + _ho_scalars_down()


def _heron_figures() -> list[Published]:
    return [
        Published(
            "heron_upload", "67108864", "B", _heron_upload, f"{HERON}: smashed data of 256 samples"
        ),
        Published(
            "heron_20_epochs_smashed",
            "244.14",
            "GiB",
            partial(_epochs, "heron", 20, False),
            f"{HERON}: 20 epochs one way; {SCALED}",
        ),
        Published(
            "heron_20_epochs",
            "244.19",
            "GiB",
            partial(_epochs, "heron", 20, True),
            f"{HERON}: 20 epochs one way and the client half both ways, the head not charged as "
            f"there; {SCALED}",
        ),
        Published(
            "splitfed_v2_16_epochs_smashed",
            "390.63",
            "GiB",
            partial(_epochs, "splitfed_v2", 16, False),
            f"{HERON}: 16 epochs both ways; {SCALED}",
        ),
        Published(
            "splitfed_v2_16_epochs",
            "390.67",
            "GiB",
            partial(_epochs, "splitfed_v2", 16, True),
            f"{HERON}: 16 epochs both ways and the client half both ways; {SCALED}",
        ),
    ]


def _port_figures() -> list[Published]:
    setting = "the same ResNet-18, 2 clients x 30 000 images of 3x32x32, batch 256, two rounds"
    return [
        Published(
            "port_splitfed_v2",
            "1988000384",
            "B",
            partial(_port, "splitfed_v2", "splitfed_v2"),
            f"{setting}; counted by an independent port",
        ),
        Published(
            "port_cse_fsl",
            "290602240",
            "B",
            partial(_port, "cse_fsl", "cse_fsl"),
            f"{setting}, k = 5; counted by an independent port",
        ),
    ]
