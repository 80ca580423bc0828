"""Attacks on halves of which one knows what they must give away."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from sfl_flower.attacks.attack import ATTACKS, attack
from sfl_flower.attacks.defences import Defence
from sfl_flower.attacks.findings import AttackReport, Finding
from sfl_flower.attacks.labels import cosine_scores, norm_scores
from sfl_flower.attacks.measures import compared, ranked
from sfl_flower.attacks.samples import sides_of
from sfl_flower.data import generator
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.task import Samples
from tests.attacks import pictures
from tests.attacks.pictures import FEW


def of(report: AttackReport, name: str, defence: str = "none", cut: int = 0) -> Finding:
    (found,) = (f for f in report.cuts[cut].findings if (f.attack, f.defence) == (name, defence))
    return found


def share(found: Finding) -> float:
    assert found.of_guess is not None
    return found.of_guess


def test_a_half_that_keeps_all_is_inverted_and_one_that_forgets_all_is_guessed() -> None:
    whole = attack(pictures.task(cut="flatten"), attacks=["decoder"], settings=FEW)
    found = of(whole, "decoder")
    assert share(found) < 0.05 and found.reached["ssim"] > 0.9
    assert found.reached["psnr"] > found.guess["psnr"] + 13
    nothing = attack(
        pictures.task(pictures.still, "still"), attacks=["decoder", "labels"], settings=FEW
    )
    assert share(of(nothing, "decoder")) == pytest.approx(1, abs=0.1)
    for name in ("gradient norm", "nearest z", "clusters of z"):
        # λ of one label is one vector there: only the cosine tells labels apart.
        reached = of(nothing, name).reached
        assert name == "gradient norm" or reached["auc"] == pytest.approx(0.5, abs=0.01)
    assert of(nothing, "gradient cosine").reached["auc"] == 1


def test_all_attacks_and_defences_are_reported_from_one_seed() -> None:
    problem, settings = pictures.task(), replace(FEW, epochs=4, victims=12)
    defences = ["noise:3", "clip:0.5,int4"]
    twice = [attack(problem, ["act"], defences=defences, settings=settings) for _ in "ab"]
    for one, other in zip(twice[0].cuts, twice[1].cuts, strict=True):
        assert one.accuracy == other.accuracy
        assert [f.reached for f in one.findings] == [f.reached for f in other.findings]
    report = twice[0]
    assert {f.attack for f in report.cuts[0].findings} == {
        "decoder", "simulator", "hijack, not followed", "hijack by λ (splitfed_v2)",
        "hijack by scalars (ho_sfl)", "gradient norm", "gradient cosine", "nearest z",
        "clusters of z",
    }  # fmt: skip
    assert all(len(cut.findings) == 9 * 3 for cut in report.cuts)
    assert share(of(report, "decoder", "noise:3")) > 1.3 * share(of(report, "decoder"))
    assert report.cuts[0].defences["noise:3"].startswith("noise of standard deviation ")


def test_a_client_that_follows_comes_to_the_pilot_and_one_that_is_not_led_stays() -> None:
    problem = pictures.task()
    led = replace(FEW, rounds=40, rate=0.2, batch=24, clients=3, probes=64)
    followed = attack(problem, attacks=["hijack"], settings=led)
    before = of(followed, "hijack, not followed")
    for name in ("hijack by λ (splitfed_v2)", "hijack by scalars (ho_sfl)"):
        after = of(followed, name)
        assert after.facts["apart"] < 0.7 * before.facts["apart"], name
        assert after.reached["mse"] < 0.7 * before.reached["mse"], name
    still = attack(problem, attacks=["hijack"], settings=replace(FEW, rounds=3, strength=0.0))
    reached = [f.reached for f in still.cuts[0].findings]
    assert reached[0] == reached[1] == reached[2]


def test_labels_are_read_off_gradients_by_hand() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 1] * 20)
    gradients = torch.where(y[:, None] == 1, torch.tensor([[0.9, 0.1]]), torch.tensor([[-0.1, 0]]))
    gradients = gradients * torch.linspace(0.9, 1.1, len(y))[:, None]
    known, labels = gradients[[0, 3]], y[[0, 3]]
    drawn = torch.from_numpy(generator("shuffled").permutation(len(y)))
    for scores in (norm_scores, cosine_scores):
        found = scores(gradients, known, labels, 2)
        assert ranked(found, y) == {"accuracy": 1.0, "auc": 1.0}
        assert ranked(found, y[drawn])["auc"] == pytest.approx(0.5, abs=0.1)


def test_measures_by_hand() -> None:
    truth = torch.zeros(2, 1, 8, 8)
    assert compared(truth, truth) == {"mse": 0.0, "psnr": 100.0, "ssim": pytest.approx(1.0)}
    shown = truth + 0.1
    assert compared(shown, truth)["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert "ssim" not in compared(torch.ones(3, 4), torch.zeros(3, 4))


def test_what_a_defence_does_to_smashed_data() -> None:
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clip = Defence.fitted("clip:0.5", z)  # the mean norm is 2.75
    drawn = generator("defence")
    assert torch.allclose(clip(z, drawn), torch.tensor([[0.825, 1.1], [0.3, 0.4]]))
    noisy = Defence.fitted("noise:2", torch.randn(500, 8, generator=torch.Generator()))
    sent = noisy(torch.zeros(4000, 8), drawn)
    assert float(sent.std()) == pytest.approx(2 * noisy.spread, rel=0.02)
    few = Defence.fitted("int4", sent)(sent, drawn)
    assert all(len(row.unique()) <= 16 for row in few[:20]) and few.shape == sent.shape


def test_of_ids_labels_alone_are_inferred() -> None:
    def words() -> nn.Module:
        return nn.Sequential(
            OrderedDict(embed=nn.Embedding(9, 4), flatten=nn.Flatten(), out=nn.Linear(20, 4))
        )

    def drawn(count: int) -> Samples:
        ids = torch.from_numpy(generator("ids", count).integers(1, 9, size=(count, 5)))
        return Samples(ids, ids[:, 0] % 4)

    problem = replace(
        pictures.task(words, "embed"), train=lambda: drawn(200), test=lambda: drawn(40)
    )
    report = attack(problem, settings=FEW)
    assert {f.kind for f in report.cuts[0].findings} == {"labels"}
    assert "left out are decoder, simulator, hijack" in report.notes[0]
    with pytest.raises(ConfigError, match="attacks must be labels"):
        attack(problem, attacks=["decoder"], settings=FEW)


def test_nobody_is_on_two_sides() -> None:
    problem = pictures.task()
    sides = sides_of(problem, FEW)
    train, test = problem.samples("train"), problem.samples("test")

    def rows(x: torch.Tensor, among: torch.Tensor) -> set[int]:
        return {int(torch.nonzero((among == one).flatten(1).all(1))[0, 0]) for one in x}

    own, seen = rows(sides.auxiliary_x, train.x), rows(sides.observed_x, train.x)
    held = rows(sides.clients().x, train.x)
    assert len(own) == 64 and len(seen) == 64 and not own & seen
    assert held == set(range(200)) - own
    assert len(rows(sides.x, test.x)) == 16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"defences": ["blur"]}, "whose step 'blur' is none"),
        ({"defences": ["noise:0"]}, "above 0"),
        ({"defences": ["none,int4"]}, "stands alone"),
        ({"attacks": ["magic"]}, f"one of {', '.join(ATTACKS)}"),
        ({"attacks": []}, "No attack is named"),
        ({"settings": replace(FEW, victims=41)}, "has 40 test samples"),
        ({"settings": replace(FEW, auxiliary=150)}, "has 200 training samples"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        attack(pictures.task(), **{"settings": FEW, **options})
    with pytest.raises(ConfigError, match="strength is -1"):
        replace(FEW, strength=-1.0)
    with pytest.raises(CutError, match="nowhere"):
        attack(pictures.task(), ["nowhere"], settings=FEW)
