from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sfl_flower import METHODS
from sfl_flower.comparison import tuning
from sfl_flower.comparison.tuning import QUICK, Among, Between, Trials, Tried, spaces_of, tune
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.tasks import load_task

SHORT: dict[str, Any] = {"rounds": 2, "clients": 3, "batch_size": 8}
RATE = {"client_lr": Between(0.01, 1.0)}


class Result:
    """What a run would have given."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self.summary = self
        self.metrics = metrics


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs that are best at a client rate of 0.1, and diverge above 0.5."""
    seen: list[Any] = []

    def run(task: Any, plan: Any, **_: Any) -> Result:
        seen.append(plan)
        rate = plan.settings.client_lr
        if rate > 0.5:
            raise TrainingError("it has diverged")
        off = abs(math.log10(rate) + 1)
        return Result({"accuracy": 0.1, "validation_accuracy": 1 - off, "validation_loss": off})

    monkeypatch.setattr(tuning, "run_plan", run)
    return seen


def found(**more: Any) -> Trials:
    return tune(load_task("digits"), "ho_sfl", **{"over": RATE, **SHORT, **more})


def test_a_grid_goes_by_factors_where_its_ends_are_far_apart() -> None:
    assert Between(0.01, 1.0).grid(3) == [0.01, 0.1, 1.0]
    assert Between(1.0, 3.0).grid(3) == [1.0, 2.0, 3.0]
    assert Between(1, 9, whole=True).grid(3) == [1, 5, 9]


def test_without_a_choice_rates_are_tried_around_their_defaults() -> None:
    assert spaces_of(METHODS["ho_sfl"], {}) == {
        "client_lr": Between(0.02, 2.0), "server_lr": Between(0.005, 0.5),
    }  # fmt: skip
    assert spaces_of(METHODS["frozen"], {"server_lr": 0.5}) == {"server_lr": Between(0.05, 5.0)}
    with pytest.raises(ConfigError, match="no rate above 0 to tune"):
        spaces_of(METHODS["frozen"], {"server_lr": 0.0})


def test_it_finds_the_rate_that_is_best_on_held_back_samples(runs: list[Any]) -> None:
    got = found(trials=25)
    assert len(got.tried) == len(runs) == 25
    assert got.tried[0].options == {"client_lr": 0.2}  # the default comes first
    assert 0.06 < got.best.options["client_lr"] < 0.17
    assert got.best.value == max(t.value for t in got.tried if not t.why)
    assert {plan.config.validation for plan in runs} == {0.1}
    assert {plan.config.eval_every for plan in runs} == {2}


def test_runs_that_diverge_are_told_and_never_the_best(runs: list[Any]) -> None:
    got = found(trials=12, over={"client_lr": Among((0.1, 0.9))})
    failed = [tried for tried in got.tried if tried.why]
    assert failed and {tried.why for tried in failed} == {"it has diverged"}
    assert got.best.options == {"client_lr": 0.1}
    with pytest.raises(ConfigError, match=r"No trial came to its end; .* it has diverged"):
        found(trials=2, over={"client_lr": Among((0.8, 0.9))}).best  # noqa: B018


def test_one_seed_tries_the_same(runs: list[Any]) -> None:
    once, twice, other = (found(trials=6, seed=seed).tried for seed in (3, 3, 4))
    assert once == twice != other


def test_trials_that_were_kept_are_not_run_again(runs: list[Any], tmp_path: Path) -> None:
    first = found(trials=4, out=tmp_path)
    assert len(runs) == 4
    rest = found(trials=6, out=tmp_path)
    assert len(runs) == 6 and rest.tried[:4] == first.tried
    assert (tmp_path / "tuning.json").exists()
    with pytest.raises(ConfigError, match="holds trials of another search"):
        found(trials=6, out=tmp_path, batch_size=4)


def test_a_quick_search_runs_eight_rates_of_six_rounds(runs: list[Any]) -> None:
    got = found(quick=True)
    assert [plan.config.rounds for plan in runs] == [6] * QUICK
    assert got.rounds == 6 and got.best.options["client_lr"] == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"validation": 0.0}, "set validation above 0"),
        ({"over": {"no_option": Among((1, 2))}, "trials": 1}, "no-option"),
        ({"over": {"task.trained": Among(("norm", "all"))}}, "over has 'task.trained'"),
        ({"metric": "beauty"}, "metric is 'beauty'"),
        ({"over": {"probes": Among((0, 1))}, "trials": 4}, "probes"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    options: dict[str, Any], said: str, runs: list[Any]
) -> None:
    with pytest.raises(ConfigError, match=said):
        found(**options)


def test_a_range_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2\.\.1 is none"):
        Between(2.0, 1.0)


def test_less_may_be_better(runs: list[Any]) -> None:
    got = found(trials=6, metric="loss")
    assert (got.metric, got.largest) == ("validation_loss", False)
    assert got.best.value == min(tried.value for tried in got.tried if not tried.why)
    assert not found(trials=1, smallest=True).largest


def test_a_loss_is_best_where_it_is_least() -> None:
    tried = [Tried({"a": 1}, 0.5), Tried({"a": 2}, 0.25), Tried({"a": 3}, math.nan, "no")]
    assert Trials("frozen", "validation_loss", False, 1, tried).best.options == {"a": 2}


def test_a_real_search_of_two_short_runs() -> None:
    got = tune(load_task("digits"), "frozen", trials=2, **SHORT)
    assert len(got.tried) == 2 and not any(tried.why for tried in got.tried)
    assert 0 < got.best.value < 1 and set(got.best.options) == {"server_lr"}
