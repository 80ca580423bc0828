"""Dry runs book what real ones do, and figures are held against the published ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.dry import CHARGED, costless, dry_rounds
from benchmarks.language_models import PAD
from benchmarks.ledger import Published, figures, published
from benchmarks.trial import options_for
from sfl_flower.presets import load_preset
from tests import tiny
from tests.texts import T, texts

W_C, W_A = 2_740_048, 8_419_408
"""Bytes of ResNet-18 to layer2, and of layer3 with an output layer."""


def row(paper: str, ours: int, unit: str = "MiB") -> Published:
    """Return a row whose bytes are given."""
    return Published("a", paper, unit, lambda: ours, "a setting")


@pytest.mark.parametrize(
    ("paper", "value", "equal"),
    [
        ("132.26", 132.262, True),
        ("132.26", 132.2685, True),  # cut off instead of rounded
        ("132.26", 132.271, False),
        ("833.5", 833.512, True),
        ("833.5", 833.39, False),
        ("75000", 75_000, True),
        ("75000", 75_001, False),
    ],
)
def test_equal_to_the_last_digit_printed(paper: str, value: float, equal: bool) -> None:
    assert row(paper, 0).equal(value) is equal


def test_a_figure_states_bytes_and_verdict_and_the_share_counts() -> None:
    found = list(figures([row("1.0", 2**20), row("3.0", 2**20)]))
    assert [figure.value for figure in found] == [1.0, 1.0, 0.5]
    assert "1048576 bytes, published 1.0 MiB: equal" in found[0].setting
    assert "NOT equal" in found[1].setting
    assert found[2].name == "ledger_equal_share" and found[2].met is False


def test_no_figure_has_the_name_of_another() -> None:
    names = [found.name for found in published()]
    assert len(set(names)) == len(names) > 20


def payload(ledger: Any, side: str) -> dict[str, int]:
    """Return the bytes by category; not control, for what a client measured is in there."""
    return {name: count for name, count in getattr(ledger, side).items() if name != "control"}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("splitfed_v2", {"local_steps": 0}),
        ("ho_sfl", {"probes": 3}),
        ("cse_fsl", {"local_steps": 3, "upload_every": 2}),
        ("heron", {"local_steps": 2}),
        ("fedavg", {"local_steps": 2}),
    ],
)
def test_a_dry_run_books_what_a_real_one_does(method: str, options: dict[str, Any]) -> None:
    problem = tiny.task(each=10)
    real = tiny.train(problem, method, rounds=2, **options)
    with costless():
        dry = tiny.train(tiny.task(each=10), method, rounds=2, **options)
    for side in ("up", "down"):
        assert payload(dry.strategy.ledger, side) == payload(real.strategy.ledger, side)
    assert dry.strategy.ledger.samples == real.strategy.ledger.samples
    assert not tiny.equal(dry.model, real.model)


@pytest.mark.parametrize("method", ["splitfed_v2", "ho_sfl", "cse_fsl", "fsl_sage"])
def test_a_dry_run_of_texts_books_what_a_real_one_does(method: str) -> None:
    """Lengths 7, 3, 9, 1 of 10 positions: what is padding is off the wire in both."""
    options: dict[str, Any] = {"clients": 2, "rounds": 2, "local_steps": 2}
    if method in ("cse_fsl", "fsl_sage"):
        options |= {"head": "pooled"} | ({"align_epochs": 1} if method == "fsl_sage" else {})
    if method == "ho_sfl":
        options.pop("local_steps")
    real = tiny.train(texts("gpt2-classes"), method, **options)
    with costless(lengths=lambda ids: (ids != PAD).sum(dim=1)):
        dry = tiny.train(texts("gpt2-classes"), method, **options)
    for side in ("up", "down"):
        found = payload(dry.strategy.ledger, side)
        assert found == payload(real.strategy.ledger, side)
    assert found["gradients"] > 0 or method in ("cse_fsl", "fsl_sage")


def test_texts_have_their_full_lengths_unless_told_otherwise() -> None:
    with costless():
        dry = tiny.train(texts("gpt2-classes"), "splitfed_v2", clients=2, rounds=1, batch_size=8)
    ledger = dry.strategy.ledger
    assert ledger.up["smashed"] == ledger.down["gradients"] == 2 * 8 * T * 16 * 4


def test_blocks_of_an_image_model_are_no_padding() -> None:
    """A cut of a ViT: z [N, T, H] of pixels."""
    build = partial(nn.Sequential, nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.Flatten())
    problem = partial(tiny.task, build=lambda: build(nn.Linear(12, 3)), cut="1")
    real = tiny.train(problem(), "splitfed_v2", rounds=1)
    with costless():
        dry = tiny.train(problem(), "splitfed_v2", rounds=1)
    assert dry.strategy.ledger.up == real.strategy.ledger.up
    assert dry.strategy.ledger.down == real.strategy.ledger.down
    assert dry.strategy.ledger.up["smashed"] == 4 * 4 * 12 * 4


def test_a_half_in_a_dry_run_gives_zeros_of_its_own_shape() -> None:
    halves = tiny.task().build(0)
    x = torch.ones(3, tiny.FEATURES)
    with costless():
        z = halves.client(x)
    assert z.shape == halves.client(x).shape and not z.any()
    assert z.requires_grad


def test_rounds_of_a_preset_in_small() -> None:
    """3 clients of 200 images, batch 64: 4 batches each, of which 0 and 2 go up for k = 2."""
    sizes: dict[str, Any] = {"clients": 3, "batch_size": 64}
    options = load_preset("splitfed_v2_resnet18_cifar10").options | sizes
    (found,) = dry_rounds(options, 1, 600)
    assert (found.up["smashed"], found.samples) == (600 * 8192, 600)
    assert found.charged() == 2 * 600 * 8192 + 2 * 3 * W_C
    options = load_preset("fsl_sage_resnet18_cifar10").options | sizes
    aligned, plain = dry_rounds(options | {"upload_every": 2, "align_epochs": 1}, 2, 600)
    assert plain.charged() == 3 * 128 * 8192 + 2 * 3 * W_C
    assert aligned.charged() - plain.charged() == aligned.down["auxiliary"] == 3 * W_A


def test_labels_and_control_are_not_charged() -> None:
    assert {"labels", "control"}.isdisjoint(CHARGED) and len(CHARGED) == 8


def test_frozen_norms_do_not_travel() -> None:
    """Of the half of HO-SFL's preset the 681 152 trained parameters go, and no statistics."""
    options = options_for("splitfed_v1", load_preset("ho_sfl_resnet18_cifar10").options)
    (found,) = dry_rounds(options | {"clients": 2, "sampled": 2}, 1, 200)
    assert found.up["weights"] == found.down["weights"] == 2 * 4 * 681_152


def test_options_of_one_method_for_another() -> None:
    found = options_for(
        "splitfed_v1", {"task": "x", "task.a": 1, "probes": 3, "client_lr": 0.1}, rounds=2
    )
    assert found == {
        "task": "x",
        "task.a": 1,
        "client_lr": 0.1,
        "method": "splitfed_v1",
        "rounds": 2,
    }
