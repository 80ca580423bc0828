"""Attacks on halves of which one knows what they must give away."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from sfl_flower.attacks.attack import ATTACKS, attack
from sfl_flower.attacks.defences import Defence, check_defence
from sfl_flower.attacks.findings import AttackReport, Finding
from sfl_flower.attacks.halves import attacked_at
from sfl_flower.attacks.inversion import begin
from sfl_flower.attacks.labels import cosine_scores, norm_scores, output_scores
from sfl_flower.attacks.measures import compared, ranked
from sfl_flower.attacks.networks import Decoder
from sfl_flower.attacks.report import markdown_attack
from sfl_flower.attacks.samples import sides_of
from sfl_flower.data import generator
from sfl_flower.errors import ConfigError, CutError, DataError
from sfl_flower.task import Samples, SplitTask
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
    for name in ("nearest z", "clusters of z"):
        assert of(nothing, name).reached["auc"] == pytest.approx(0.5, abs=0.01), name
    # λ of one label is one vector there, with a norm and a direction of its own.
    for name in ("gradient norm", "gradient cosine"):
        assert of(nothing, name).reached["auc"] == 1, name


def test_a_guess_that_knows_labels_is_the_one_to_beat() -> None:
    report = attack(pictures.task(), attacks=["decoder"], settings=FEW)
    found = of(report, "decoder")
    # The stripe is the label: the mean of its class is nearly the picture.
    assert 0 < found.class_guess["mse"] < 0.15 * found.guess["mse"]
    assert share(found) == found.reached["mse"] / found.class_guess["mse"]
    truth, class_guess = report.truth, report.class_guess
    assert float((truth - class_guess).square().mean()) == pytest.approx(found.class_guess["mse"])
    poor = replace(found, reached={"mse": 1.01 * found.class_guess["mse"]})
    assert poor.failed and not found.failed
    cut = replace(report.cuts[0], findings=[found, replace(poor, defence="int4")])
    said = markdown_attack(replace(report, cuts=[cut]))
    assert "first: worse than a guess: this attack failed here: int4, decoder." in said


@pytest.mark.flower
def test_an_attack_that_is_refused_costs_no_other() -> None:
    kept: list[int] = []
    report = attack(
        pictures.task(),
        ["flatten", "first"],
        attacks=["decoder", "hijack"],
        settings=replace(FEW, epochs=2),
        keep=lambda so_far: kept.append(len(so_far.cuts)),
    )
    assert kept == [1, 2]
    assert {f.attack for f in report.cuts[0].findings} == {"decoder", "hijack, not followed"}
    refused = [note for note in report.cuts[0].notes if "is left out: " in note]
    assert [note.split(" is left")[0] for note in refused] == [
        "hijack by λ (splitfed_v2)", "hijack by scalars (ho_sfl)",
    ]  # fmt: skip
    assert len(report.cuts[1].findings) == 4 and not report.cuts[1].notes


@pytest.mark.flower
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
        "clusters of z", "server half",
    }  # fmt: skip
    assert all(len(cut.findings) == 10 * 3 for cut in report.cuts)
    assert share(of(report, "decoder", "noise:3")) > 1.3 * share(of(report, "decoder"))
    assert report.cuts[0].defences["noise:3"].startswith("noise of standard deviation ")


@pytest.mark.flower
def test_a_client_that_follows_comes_to_the_pilot_and_one_that_is_not_led_stays() -> None:
    problem = pictures.task()
    led = replace(FEW, rounds=40, rate=0.2, batch=24, clients=3, probes=32)
    followed = attack(problem, attacks=["simulator", "hijack"], settings=led)
    before, mean = of(followed, "hijack, not followed"), of(followed, "simulator").guess["mse"]
    assert of(followed, "simulator").reached["mse"] < 0.5 * mean
    for name in ("hijack by λ (splitfed_v2)", "hijack by scalars (ho_sfl)"):
        after = of(followed, name)
        assert after.facts["apart"] < 0.7 * before.facts["apart"], name
        assert after.reached["mse"] < 0.7 * before.reached["mse"], name
        assert after.reached["mse"] < 0.25 * mean, name
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
    one = output_scores(torch.tensor([-2.0, 3.0]), 2)
    assert one is not None and one.tolist() == [[2, -2], [-3, 3]]
    assert output_scores(torch.zeros(5, 7), 4) is None


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
    check_defence("noise:1e-3,clip:2E1")


def test_padding_of_texts_stays_empty_and_sightings_take_noise_off() -> None:
    z = torch.ones(200, 3, 8)
    z[:, 2] = 0
    noisy, drawn = Defence.fitted("noise:1,randtopk:0.5+float32", z), generator("texts")
    sent = noisy(z, drawn)
    assert not sent[:, 2].any() and (sent[:, :2] != 0).any(-1).all()
    plain = Defence.fitted("noise:1", z)
    once, often = (float((plain.seen(z, drawn, n) - z)[:, :2].std()) for n in (1, 16))
    assert often == pytest.approx(once / 4, rel=0.1)
    # What is drawn follows from the mini-batch, of which there is another each time.
    odd, given = Defence.fitted("randtopk:0.5+float32", z), torch.rand(50, 20)
    assert not torch.equal(odd(given, drawn), odd(given, drawn))


def test_gradients_pass_a_defence() -> None:
    z = torch.rand(4, 6, requires_grad=True)
    sent = Defence.fitted("noise:1,int4", z.detach())(z, generator("through"))
    (found,) = torch.autograd.grad(sent.sum(), z)
    assert torch.equal(found, torch.ones(4, 6)) and not torch.allclose(sent, z)


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


def test_inputs_of_any_kind_are_pictures_numbers_or_ids_and_else_refused() -> None:
    def of_kind(change: Callable[[torch.Tensor], torch.Tensor]) -> SplitTask:
        def samples(count: int, seed: int) -> Samples:
            drawn = pictures.striped(count, seed)
            return Samples(change(drawn.x), drawn.y)

        model = partial(nn.Sequential, OrderedDict(cast=pictures.Cast(), out=nn.Linear(16, 4)))
        return replace(
            pictures.task(model, "cast"), train=lambda: samples(200, 1), test=lambda: samples(40, 2)
        )

    grey = sides_of(of_kind(lambda x: x[:, 0]), FEW)
    assert grey.guess.shape == (1, 1, 4, 4) and not grey.tokens
    assert grey.scale.span.shape == (1, 1, 1, 1)
    task = of_kind(lambda x: (255 * x).to(torch.uint8))
    assert not sides_of(task, FEW).tokens
    found = of(attack(task, attacks=["decoder"], settings=FEW), "decoder")
    assert "ssim" in found.reached and share(found) < 0.2
    assert sides_of(of_kind(lambda x: (9 * x[:, 0, 0]).long()), FEW).tokens
    with pytest.raises(ConfigError, match=r"are float32 of shape \[16\]; an attack takes"):
        sides_of(of_kind(lambda x: x[:, 0, 0, 0]), FEW)


def test_weights_that_no_seed_changes_are_said_and_buffers_are_given() -> None:
    def loaded() -> nn.Module:
        whole = pictures.model()
        whole.state_dict()["first.weight"].copy_(torch.linspace(-1, 1, 256).reshape(16, 16))
        whole.state_dict()["first.bias"].zero_()
        return whole

    few = replace(FEW, epochs=1)
    report = attack(pictures.task(loaded), attacks=["simulator"], settings=few)
    assert report.cuts[0].notes[0].startswith("100% of what is drawn")
    other = attack(pictures.task(loaded, "hidden"), attacks=["simulator"], settings=few)
    assert other.cuts[0].notes[0].startswith(f"{256 / (256 + 8 * 16 + 8):.0%} of what is drawn")

    def normed() -> nn.Module:
        return nn.Sequential(OrderedDict(flatten=nn.Flatten(), norm=nn.BatchNorm1d(16), out=out()))

    out = partial(nn.Linear, 16, 4)
    known = replace(
        pictures.task(normed, "norm"),
        first_buffers=lambda: {"norm.running_mean": torch.full((16,), 3.0)},
    )
    for half in (attacked_at(known, 0).client, attacked_at(known, 0).fresh("simulator")):
        assert dict(half.named_buffers())["norm.running_mean"].tolist() == [3.0] * 16


def test_numbers_that_are_not_finite_are_refused_in_a_sentence() -> None:
    def broken() -> nn.Module:
        whole = pictures.model()
        whole.state_dict()["first.weight"][0, 0] = torch.nan
        return whole

    for at in ("first", "flatten"):
        with pytest.raises(DataError, match="not all finite"):
            attack(pictures.task(broken, at), attacks=["labels"], settings=FEW)


def test_labels_alone_need_no_package_for_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    assert attack(pictures.task(), attacks=["labels"], settings=FEW).cuts[0].findings
    with pytest.raises(ConfigError, match="pytorch-msssim"):
        attack(pictures.task(), attacks=["decoder"], settings=FEW)


def test_a_decoder_too_large_for_a_linear_layer_begins_at_the_mean_of_the_class() -> None:
    z, y = torch.rand(40, 300, 4, 4), torch.arange(40) % 2
    truth = torch.rand(40, 3, 30, 30)
    decoder = Decoder(z, (3, 30, 30), 3)
    assert decoder.direct is None
    _, own = begin(decoder, z, y, truth, generator("begin"))
    kept = torch.from_numpy(own)
    for label in (0, 1):
        mean = truth[kept][y[kept] == label].mean(0)
        shown = decoder(z[:1], torch.tensor([label]))[0]
        assert torch.allclose(shown, mean, atol=1e-6)
    nowhere = decoder(z[:1], torch.tensor([2]))[0]
    assert torch.allclose(nowhere, truth[kept].mean(0), atol=1e-6)


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
        ({"defences": ["noise:1e9"]}, "above 0, at most 1e"),
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
