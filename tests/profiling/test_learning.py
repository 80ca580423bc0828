"""What forwards will learn: the formula against estimates that are drawn, tables and advice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

from sfl_flower import profile
from sfl_flower.cli.main import main
from sfl_flower.errors import ConfigError
from sfl_flower.profiling.learning import Learning, LearningRow, learning, progress
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted, resolved
from sfl_flower.task import SplitTask
from tests import tiny


def problem(trained: str = "all") -> SplitTask:
    return tiny.task(trained=trained, public=lambda: tiny.samples(20, 7))


def test_progress_is_that_of_the_best_step_along_estimates() -> None:
    """Of a loss |θ|²/2 in 20 dimensions, of which 8 are trained, with 5 directions a step."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal(20)
    inside = g[:8]
    u = rng.choice([-1.0, 1.0], (200_000, 5, 8))
    estimates = np.einsum("npd,np->nd", u, u @ inside) / 5
    # A step η ĝ lowers the loss by η gᵀĝ - η² |ĝ|² / 2: at its best by (gᵀE ĝ)² / (2 E|ĝ|²).
    lowered = (estimates @ inside).mean() ** 2 / (2 * (estimates**2).sum(axis=1).mean())
    share = float(inside @ inside) / float(g @ g)
    assert lowered / (g @ g / 2) == pytest.approx(progress(share, 8, 5), rel=0.01)


def row(**more: object) -> LearningRow:
    values = {
        "at": "a", "trained": "x", "chosen": "x", "size": 81, "share": 0.5, "weight": 0.4,
        "probes": 4, "sampled": 5,
    }  # fmt: skip
    return LearningRow(**{**values, **more})  # type: ignore[arg-type]


def test_numbers_of_a_row_by_hand() -> None:
    found = row()
    assert found.ratio == 81 / 20
    assert found.progress == pytest.approx(0.5 / (1 + 80 / 20))
    assert found.best_probes == 4
    assert found.per_forward == pytest.approx(0.1 * 3 / 5)
    assert found.whole == pytest.approx(0.6 + 0.4 * 0.1)
    assert row(size=1).progress == 0.5 and row(size=1).best_probes == 1


def test_no_other_number_of_probes_brings_more_a_forward() -> None:
    best = row(size=2001)
    for probes in range(1, 100):
        found = progress(0.5, 2001, probes * 5) * 3 / (1 + probes)
        assert found <= best.per_forward * (1 + 1e-3)


@pytest.mark.parametrize("trained", ["all", "bias", "subspace:2", "core:2", "subspace:auto:0.8:1"])
def test_shares_are_those_of_a_run(trained: str) -> None:
    (found,) = learning(problem(), ["act"], [trained]).rows
    task = problem(trained)
    halves = fitted(resolved(task, 0), 0)
    share = energy_share(halves.client, sample_gradients(task, 0))
    assert found.size == share.trained
    assert found.share == pytest.approx(share.mean, rel=1e-4)
    assert found.chosen == resolved(task, 0).trained


def test_what_cannot_be_is_left_out_with_its_reason() -> None:
    found = learning(problem(), ["act", "act2"], ["all", "norm"])
    assert [(r.at, r.trained) for r in found.rows] == [("act", "all"), ("act2", "all")]
    assert found.rows[0].weight < found.rows[1].weight < 1
    (note,) = found.notes
    assert note.startswith("norm is left out at 'act': trained is 'norm', which chooses nothing")


def test_what_is_recommended() -> None:
    rows = (
        row(trained="much", size=10_000), row(trained="few", chosen="subspace:a=1", size=21),
        row(at="b", trained="few", size=21, weight=0.8),
    )  # fmt: skip
    (said,) = Learning(rows).advice()
    assert said == (
        "To learn by forwards: cut at 'a' with task.trained=subspace:a=1 and P = 2: 21 parameters "
        "hold 0.50 of the client half's gradient, and a step of 5 clients goes 0.17 as far as one "
        "of backprop there; as late as 'b', few and P = 2 go 0.17, and 0.80 of the whole gradient "
        "is the client's, not 0.40."
    )


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["profile", "--task", "digits", "--batch-size", "8", "--seconds", "0", "--cuts", "tanh1"]
    assert main([*argv, "--learn"]) == 0
    said = capsys.readouterr().out
    assert "What forwards learn" in said and "To learn by forwards: cut at 'tanh1'" in said
    assert main([*argv, "--learn", "all", "subspace:2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["learning"]
    assert [r["trained"] for r in rows] == ["all", "subspace:2"]
    assert rows[0]["energy_share"] == pytest.approx(1.0)


def test_what_has_no_labels_or_no_choice_yet_is_refused() -> None:
    with pytest.raises(ConfigError, match="profile a task, not a model"):
        profile(nn.Linear(2, 2), tiny.samples(4).x[:, :2], learn=[])
    with pytest.raises(ConfigError, match="which a server chooses when a run begins"):
        profile(problem("subspace:auto"))
