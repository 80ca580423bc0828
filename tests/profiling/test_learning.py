"""What forwards will learn: shares, scalars of channels and costs are those of a run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sfl_flower import profile
from sfl_flower.cli.main import main
from sfl_flower.errors import ConfigError
from sfl_flower.profiling.learning import CHOICES, learning
from sfl_flower.server.energy import energy_share, labelled, sample_gradients
from sfl_flower.server.subspace import fitted, resolved
from sfl_flower.task import Samples, SplitTask
from tests import tiny


def problem(trained: str = "all") -> SplitTask:
    return tiny.task(trained=trained, public=lambda: tiny.samples(20, 7))


@pytest.mark.parametrize("trained", ["all", "bias", "subspace:2", "core:2", "subspace:auto:0.8:1"])
def test_shares_are_those_of_a_run(trained: str) -> None:
    (found,) = learning(problem(), ["act"], [trained]).rows
    task = problem(trained)
    halves = fitted(resolved(task, 0), 0)
    share = energy_share(halves.client, sample_gradients(task, 0, split="public"))
    assert found.size == share.trained
    assert found.share == pytest.approx(share.mean, rel=1e-4)
    assert found.chosen == resolved(task, 0).trained


def test_what_cannot_be_is_left_out_with_its_reason() -> None:
    found = learning(problem(), ["act", "act2"], ["all", "norm"])
    assert [(r.at, r.trained) for r in found.rows] == [("act", "all"), ("act2", "all")]
    assert found.rows[0].weight < found.rows[1].weight < 1
    (note,) = found.notes
    assert note.startswith("norm is left out at 'act': trained is 'norm', which chooses nothing")


def test_what_needs_public_samples_is_named_where_there_are_none() -> None:
    found = learning(tiny.task(), ["act"], ["all", "subspace:auto", "core:2"])
    assert [row.trained for row in found.rows] == ["all"] and found.samples == "40 test samples"
    auto, core = found.notes
    assert "'act': trained is 'subspace:auto', for which the server needs public" in auto
    assert "'act': trained is 'core:2', for which the server needs public" in core


def test_shares_are_of_public_samples_with_labels_else_of_the_tests() -> None:
    assert learning(problem(), ["act"], ["all"]).samples == "20 public samples"
    assert labelled(problem()) == "public" and labelled(tiny.task()) == "test"
    drawn = tiny.samples(20, 7)
    none = Samples(drawn.x, torch.zeros_like(drawn.y))
    assert labelled(tiny.task(public=lambda: none)) == "test"
    ignored = Samples(drawn.x, torch.tensor([[2, -100]] * 20))
    assert labelled(tiny.task(public=lambda: ignored, ignore_label=-100)) == "test"


def test_rows_of_the_last_layer_have_scalars_of_channels() -> None:
    """Behind ``act`` 5 rows of 6 and a bias; behind ``act2`` 4 of 5 and a bias, and those 35."""
    rows = {(row.at, row.trained): row for row in learning(problem(), ["act", "act2"]).rows}
    one, two = rows["act", "all"], rows["act2", "all"]
    assert (one.size, one.apart) == (35, 7)
    assert (two.size, two.apart) == (35 + 24, 35 + 6)
    assert (rows["act2", "last:1"].size, rows["act2", "last:1"].apart) == (24, 6)
    assert (rows["act2", "subspace:1"].size, rows["act2", "subspace:1"].apart) == (18, 10 + 2)
    # A usual choice is the last layer alone, in as many directions as it has up to 16.
    assert {name for at, name in rows if at == "act"} - {*CHOICES} == {"subspace:6:first"}
    assert {name for at, name in rows if at == "act2"} - {*CHOICES} == {"subspace:5:hidden"}
    assert rows["act2", "subspace:5:hidden"].apart == 6


def test_where_nothing_is_told_apart_there_is_no_such_progress() -> None:
    (found,) = learning(problem(), ["act2"], ["first.*"]).rows
    assert (found.apart, found.by_channel, found.scalars) == (0, None, "batch")


def test_an_update_costs_what_runs() -> None:
    """The first layer has 6 x 5 products, the second 5 x 4, a direction of it 5 and 4 more."""
    choices = ["all", "last:1", "subspace:1:hidden"]
    whole, last, few = learning(problem(), ["act2"], choices).rows
    assert (whole.anchor, whole.probe) == (1, 1)
    assert (last.anchor, last.probe) == pytest.approx((1, 20 / 50))
    assert (few.anchor, few.probe) == pytest.approx((59 / 50, 29 / 50))
    (central,) = learning(problem(), ["act2"], ["last:1"], estimator="central").rows
    assert (central.anchor, central.probe) == pytest.approx((1, 40 / 50))


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["profile", "--task", "digits", "--batch-size", "8", "--seconds", "0", "--cuts", "tanh1"]
    assert main([*argv, "--learn"]) == 0
    said = capsys.readouterr().out
    assert "What forwards learn" in said and "on 256 test samples" in " ".join(said.split())
    assert "To learn by forwards: cut at 'tanh1'" in said
    assert main([*argv, "--learn", "all", "subspace:2", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["learning_samples"] == "256 test samples"
    rows = numbers["learning"]
    assert [r["trained"] for r in rows] == ["all", "subspace:2"]
    assert rows[0]["energy_share"] == pytest.approx(1.0)
    for row in rows:
        assert row["scalars"] == "channel" and row["progress_by_channel"] > row["progress"]
        assert row["noise_dimensions_by_channel"] < row["trained_parameters"]
    assert (rows[0]["anchor_forwards"], rows[0]["probe_forwards"]) == (1, 1)
    assert rows[1]["anchor_forwards"] == rows[1]["probe_forwards"] > 1


def test_what_has_no_labels_or_no_choice_yet_is_refused() -> None:
    with pytest.raises(ConfigError, match="profile a task, not a model"):
        profile(nn.Linear(2, 2), tiny.samples(4).x[:, :2], learn=[])
    with pytest.raises(ConfigError, match="which a server chooses when a run begins"):
        profile(problem("subspace:auto"))
