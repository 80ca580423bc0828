"""A cut that is wrong in any way is no equal one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import cuts
from benchmarks.architectures import Architecture
from benchmarks.real_language_models import REAL_LANGUAGE_MODELS
from sfl_flower.split import Halves, every_cut

SMALL = Architecture(
    "small",
    lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
    ("0", "1"),
    inputs=lambda: torch.ones(2, 3),
)


def changed(model: nn.Module) -> Iterator[Halves]:
    """Halves of which the last has another weight, in its own copy only."""
    for halves in every_cut(model):
        if halves.at == "2":
            with torch.no_grad():
                next(halves.server.parameters()).add_(1)
        yield halves


def test_what_is_wrong_is_said_of_each_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts.faults(SMALL) == {"0": "", "1": "", "2": ""}
    assert cuts.faults(replace(SMALL, named=("0", "3")))["3"] == "not legal"
    monkeypatch.setattr(cuts, "every_cut", changed)
    assert cuts.faults(SMALL) == {"0": "", "1": "", "2": "another state"}


def test_the_share_is_over_all_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(SMALL, name="other", whole=lambda model, x: model(x) + 1)
    monkeypatch.setattr(cuts, "ARCHITECTURES", (SMALL, other))
    first, second, share = cuts.run(argparse.Namespace(cuts_real=False))
    assert (first.name, first.value) == ("cuts_small", 1.0)
    assert second.value == 0.0 and "0 (another output)" in second.setting
    assert share.value == 0.5 and share.met is False
    assert "3 of 6 cuts" in share.setting and share.setting.endswith("unequal ones: other")


SMALLEST = ("real_gpt2", "real_opt_125m", "real_bert_base", "real_roberta_base")


@pytest.mark.parametrize("name", SMALLEST)
def test_a_language_model_of_real_size(name: str) -> None:
    (found,) = (model for model in REAL_LANGUAGE_MODELS if model.name == name)
    assert list(cuts.faults(found).values()) == [""]


def test_models_of_real_size_are_cut_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuts, "ARCHITECTURES", (SMALL,))
    big = replace(SMALL, name="big", named=(), only=("1",))
    monkeypatch.setattr(cuts, "REAL_LANGUAGE_MODELS", (big,))
    figures = list(cuts.run(argparse.Namespace(cuts_real=True)))
    assert [figure.name for figure in figures] == ["cuts_small", "cuts_big", "cuts_equal_share"]
    assert "4 of 4 cuts" in figures[-1].setting
